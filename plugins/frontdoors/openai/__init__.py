"""The OpenAI-compatible front door.

door.py         the plugin: options, start, drain, security posture
connection.py   one connection: timeouts, connection limit, slow clients
application.py  from a request to its handler: keys, bodies, errors, logs
wire.py         request and response bodies as types; validation and OpenAPI come from these
sampling.py     a request body as sampling parameters
prompts.py      a request body as prompt token ids
choices.py      one answer: tokens to text, stop strings, logprobs
generation.py   the life of a request: submit, wait, cancel
stream.py       server-sent events, straight to the socket
chat.py, completions.py, utilities.py   the endpoints
certificates.py what HTTPS is spoken with, checked
keys.py         API keys and what each may do
metrics.py, logs.py, openapi.py, errors.py
"""
