"""Chat templates of our own writing, each after the habits of a family of models."""

from __future__ import annotations

CHATML = """{% for m in messages %}<|im_start|>{{ m['role'] }}
{{ m['content'] }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

THINKING = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
    {{- '<tools>' }}
    {%- for tool in tools %}{{- '\\n' + (tool | tojson) }}{%- endfor %}
    {{- '\\n</tools><|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(last=0) %}
{%- for m in messages %}{%- if m.role == 'user' %}{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}
{%- for m in messages %}
    {%- if m.role == 'user' or (m.role == 'system' and not loop.first) %}
        {{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}
    {%- elif m.role == 'assistant' %}
        {%- set text = m.content.split('</think>')[-1].lstrip('\\n') %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if m.reasoning_content is string and loop.index0 > ns.last %}
            {{- '<think>\\n' + m.reasoning_content.strip('\\n') + '\\n</think>\\n\\n' }}
        {%- endif %}
        {{- text }}
        {%- for call in m.tool_calls or [] %}
            {{- '\\n<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
            {%- if call.function.arguments is string %}{{- call.function.arguments }}
            {%- else %}{{- call.function.arguments | tojson }}{%- endif %}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif m.role == 'tool' %}
        {{- '<|im_start|>user\\n<tool_response>\\n' + m.content + '\\n</tool_response><|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}"""

HEADERS = """{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] | trim %}{%- set rest = messages[1:] %}
{%- else %}{%- set system = '' %}{%- set rest = messages %}{%- endif %}
{{- '<|start|>system<|end|>\\n\\n' }}
{%- if tools is not none %}{{- 'Environment: ipython\\n' }}{%- endif %}
{{- system + '<|eot|>' }}
{%- if tools is not none and rest | length %}
    {{- '<|start|>user<|end|>\\n\\n' }}
    {%- for t in tools %}{{- t | tojson(indent=4) + '\\n\\n' }}{%- endfor %}
    {{- rest[0]['content'] | trim + '<|eot|>' }}{%- set rest = rest[1:] %}
{%- endif %}
{%- for m in rest %}
    {%- if not (m.role == 'ipython' or m.role == 'tool' or 'tool_calls' in m) %}
        {{- '<|start|>' + m['role'] + '<|end|>\\n\\n' + m['content'] | trim + '<|eot|>' }}
    {%- elif 'tool_calls' in m %}
        {%- if not m.tool_calls | length == 1 %}{{- raise_exception('only single tool-calls at once!') }}{%- endif %}
        {%- set call = m.tool_calls[0].function %}
        {{- '<|start|>assistant<|end|>\\n\\n{"name": "' + call.name + '", "parameters": ' + call.arguments | tojson + '}<|eot|>' }}
    {%- else %}
        {{- '<|start|>ipython<|end|>\\n\\n' }}
        {%- if m.content is mapping or m.content is iterable %}{{- m.content | tojson }}{%- else %}{{- m.content }}{%- endif %}
        {{- '<|eot|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start|>assistant<|end|>\\n\\n' }}{%- endif %}"""

BRACKETS = """{%- if messages[0].role == 'system' %}{%- set system = messages[0].content %}{%- set rest = messages[1:] %}
{%- else %}{%- set rest = messages %}{%- endif %}
{{- bos_token }}
{%- set ns = namespace(index=0) %}
{%- for m in rest if not (m.role == 'tool' or m.tool_calls) %}
    {%- if (m.role == 'user') != (ns.index % 2 == 0) %}{{- raise_exception('roles must alternate user/assistant') }}{%- endif %}
    {%- set ns.index = ns.index + 1 %}
{%- endfor %}
{%- for m in rest %}
    {%- if m.role == 'user' %}
        {%- if tools and m == (rest | selectattr('role', 'equalto', 'user') | list | last) %}
            {{- '[AVAILABLE_TOOLS] ' + tools | tojson + '[/AVAILABLE_TOOLS]' }}
        {%- endif %}
        {{- '[INST] ' + (system + '\\n\\n' if loop.last and system is defined else '') + m.content + '[/INST]' }}
    {%- elif m.tool_calls %}
        {{- '[TOOL_CALLS] [' }}
        {%- for call in m.tool_calls %}
            {%- if call.id | length != 9 %}{{- raise_exception('Tool call IDs should be alphanumeric strings with length 9!') }}{%- endif %}
            {%- set out = call.function | tojson %}
            {{- out[:-1] + ', "id": "' + call.id + '"}' }}{{- ', ' if not loop.last else ']' + eos_token }}
        {%- endfor %}
    {%- elif m.role == 'assistant' %}{{- ' ' + m.content | trim + eos_token }}
    {%- elif m.role == 'tool' %}
        {%- set content = m.content.content if m.content.content is defined else m.content %}
        {{- '[TOOL_RESULTS] {"content": ' + content | string + ', "call_id": "' + m.tool_call_id + '"}[/TOOL_RESULTS]' }}
    {%- else %}{{- raise_exception('Only user and assistant roles are supported') }}
    {%- endif %}
{%- endfor %}"""

TURNS = """{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{%- for m in messages -%}
    {%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}{% endif -%}
    <turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}
{{ m['content'] | trim }}</turn>
{% endfor %}
{%- if add_generation_prompt %}<turn>model
{% endif %}"""

NULLS = """{{ bos_token }}{% set ns = namespace(system='', tool=false) %}
{%- for m in messages %}{% if m['role'] == 'system' %}{% set ns.system = m['content'] %}{% endif %}{% endfor %}
{{- ns.system }}
{%- for m in messages %}
    {%- if m['role'] == 'user' %}{{- '<|User|>' + m['content'] }}{% endif %}
    {%- if m['role'] == 'assistant' and m['content'] is none %}
        {%- for call in m['tool_calls'] %}
            {{- '<|Assistant|><|call|>' + call['type'] + '<|sep|>' + call['function']['name'] + '\\n```json\\n' + call['function']['arguments'] + '\\n```<|/call|>' }}
        {%- endfor %}{{- eos_token }}
    {%- endif %}
    {%- if m['role'] == 'assistant' and m['content'] is not none %}
        {%- set content = m['content'] %}
        {%- if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}
        {{- '<|Assistant|>' + content + eos_token }}
    {%- endif %}
    {%- if m['role'] == 'tool' %}{{- '<|output|>' + m['content'] + '<|/output|>' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|Assistant|><think>\\n' }}{% endif %}"""

DOCUMENTS = """{% set roles = {'user': 'USER', 'assistant': 'CHATBOT', 'system': 'SYSTEM'} %}
{%- if documents %}<results>
{% for d in documents %}Document: {{ loop.index0 }}
{% for key, value in d.items() %}{{ key }}: {{ value }}
{% endfor %}{% endfor %}</results>{% endif %}
{%- for m in messages %}
    {%- if m.role in roles %}
<|turn|>{{ roles[m.role] }}: {% if m.tool_calls %}Action: ```json
[{% for call in m.tool_calls %}
    {
        "tool_name": "{{ call['function']['name'] }}",
        "parameters": {{ call['function']['arguments'] | tojson(indent=4) }}
    }{% if not loop.last %},{% endif %}
{% endfor %}]```{% else %}{{ m.content | trim }}{% endif %}<|end|>
    {%- elif m.role == 'tool' %}
        {%- if loop.previtem is defined and loop.previtem.role != 'tool' %}<results>{% endif %}
{{ m.content }}{% if loop.last or loop.nextitem.role != 'tool' %}</results>{% endif %}
    {%- else %}{{ raise_exception('Unknown role: ' + m.role) }}{% endif %}
{%- endfor %}{% if add_generation_prompt %}<|turn|>CHATBOT: {% endif %}"""

CHANNELS = """{%- if messages[0].role in ['developer', 'system'] %}
    {%- set instructions = messages[0].content %}{%- set rest = messages[1:] %}
{%- else %}{%- set instructions = '' %}{%- set rest = messages %}{%- endif %}
{{- '<|start|>system<|message|>Reasoning: ' + reasoning_effort | default('medium') + '<|end|>' }}
{%- if instructions or tools %}
    {{- '<|start|>developer<|message|>' + instructions }}
    {%- for t in tools or [] %}
        {{- '\\n// ' + t.function.description | default('') + '\\ntype ' + t.function.name + ' = (_: {' }}
        {%- for name, spec in t.function.parameters.properties.items() %}{{- name + ': ' + spec.type + ', ' }}{%- endfor %}
        {{- '}) => any;' }}
    {%- endfor %}
    {{- '<|end|>' }}
{%- endif %}
{%- set last = namespace(name=none) %}
{%- for m in rest %}
    {%- if m.role == 'assistant' %}
        {%- if m.tool_calls %}
            {%- if m.content and m.thinking %}{{- raise_exception('Cannot pass both content and thinking') }}{%- endif %}
            {%- if m.content or m.thinking %}{{- '<|start|>assistant<|channel|>analysis<|message|>' + (m.content or m.thinking) + '<|end|>' }}{%- endif %}
            {%- set call = m.tool_calls[0].function %}{%- set last.name = call.name %}
            {{- '<|start|>assistant to=functions.' + call.name + '<|message|>' + call.arguments | tojson + '<|call|>' }}
        {%- else %}
            {%- if m.thinking and loop.last %}{{- '<|start|>assistant<|channel|>analysis<|message|>' + m.thinking + '<|end|>' }}{%- endif %}
            {{- '<|start|>assistant<|channel|>final<|message|>' + m.content + '<|end|>' }}
            {%- set last.name = none %}
        {%- endif %}
    {%- elif m.role == 'tool' %}
        {%- if last.name is none %}{{- raise_exception('Message has tool role, but there was no call') }}{%- endif %}
        {{- '<|start|>functions.' + last.name + ' to=assistant<|message|>' + m.content | tojson + '<|end|>' }}
    {%- elif m.role == 'user' %}{{- '<|start|>user<|message|>' + m.content + '<|end|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start|>assistant' }}{%- endif %}"""

PARTS_ONLY = """<|begin|>{% for m in messages %}{{ m['role'] | capitalize }}:{% for part in m['content'] %}
{%- if part['type'] == 'image' %}<image>{% elif part['type'] == 'text' %} {{ part['text'] }}{% endif %}{% endfor %}<end>
{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"""

PARTS_OR_TEXT = """{%- macro shown(content) -%}
    {%- if content is string -%}{{ content }}
    {%- elif content is not none -%}{%- for part in content -%}
        {%- if part.type == 'text' -%}{{ part.text }}{%- elif part.type == 'thinking' -%}[THINK]{{ part.thinking }}[/THINK]{%- endif -%}
    {%- endfor -%}{%- endif -%}
{%- endmacro -%}
{%- for m in messages -%}
    {%- if m.role == 'system' and not loop.first -%}{%- continue -%}{%- endif -%}
    <{{ m.role }}>{{ shown(m.content) }}
    {%- for call in m.tool_calls or [] -%}
        <call name="{{ call.function.name }}">{% for key, value in call.function.arguments | items -%}
        <arg key="{{ key }}">{{ value if value is string else value | tojson }}</arg>{% endfor %}</call>
    {%- endfor -%}
    {%- if m.role == 'assistant' -%}{% generation %}{{ eos_token }}{% endgeneration %}{%- endif -%}
    </{{ m.role }}>
{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"""

STYLES = {
    "chatml": CHATML,
    "thinking": THINKING,
    "headers": HEADERS,
    "brackets": BRACKETS,
    "turns": TURNS,
    "nulls": NULLS,
    "documents": DOCUMENTS,
    "channels": CHANNELS,
    "parts only": PARTS_ONLY,
    "parts or text": PARTS_OR_TEXT,
}
