"""The library in one sitting: plan, compare, simulate, serve.

A script whose parts are marked `# %%`: editors and Jupyter (through jupytext) run them one at a
time.  The last part serves a small model on this machine, once `tools/quickstart` has made it.

    python examples/walkthrough.py
"""

# %% What can be rented, and which model: a TOML file.
from pathlib import Path

import shuntserve_core as ss

HERE = Path(__file__).parent
config = ss.load_config(HERE / "paper-qwen3-32b.toml")
print(config.model.name, "on", dict(config.cluster.counts))

# %% Which instances, how many layers on each.
placement = ss.plan(config)
print(f"{placement.throughput_rps:.2f} requests/s for ${placement.cost_per_hour:.2f} an hour")
for pipeline in placement.pipelines:
    print("  ", " + ".join(f"{s.layers} on {s.instance}" for s in pipeline.stages))

# %% The same cluster with another optimizer, and with pipelines of our own.
simple = ss.plan(config, optimizer="single-pipeline")
own = ss.estimate(config, "g6e.xlarge:32,g6e.xlarge:32")
for name, chosen in (("single-pipeline", simple), ("our own", own)):
    print(f"{name}: {chosen.throughput_rps:.2f} requests/s")

# %% What is installed to choose from: plugins, bundled or anybody's.
registry = ss.Registry()
print("optimizers:", ", ".join(registry.entries("optimizer")))

# %% A quarter of an hour of real traffic, without a GPU; then with machines that are taken away.
conversation = HERE / "traces" / "azure-conversation-2023.csv"
calm = ss.simulate(config, conversation, placement=placement, seconds=900)
rough = ss.simulate(
    config,
    conversation,
    placement=placement,
    events=HERE / "traces" / "paper-interruptions.csv",
    seconds=900,
)
for name, result in (("calm", calm), ("interrupted", rough)):
    summary = result.summary()
    rate, moved = summary["output_tokens_per_second"], summary["migrations"]
    print(f"{name}: {rate:.0f} tokens/s, {moved} requests moved")

# %% A real cluster: processes of this machine that stand for nodes, and one endpoint.
quickstart = ss.load_config(HERE / "quickstart.toml")
if (HERE.parent / ".quickstart").is_dir():
    with ss.serve(quickstart) as cluster:
        from openai import OpenAI

        client = OpenAI(base_url=f"{cluster.url}/v1", api_key="unused")
        answer = client.completions.create(
            model="SmolLM2-135M-Instruct",
            prompt="The capital of France is",
            max_tokens=8,
            temperature=0,
        )
        print("served:", repr(answer.choices[0].text))
else:
    print("no model here yet: run tools/quickstart once")
