"""vLLM's configuration of one rank."""

from __future__ import annotations

from pathlib import Path

import cattrs
from vllm.config import VllmConfig
from vllm.engine.arg_utils import EngineArgs

from shuntserve_core.quantization import read_config
from shuntserve_plugins.engines.vllm.engine import WorkerSpec, longest
from shuntserve_plugins.engines.vllm.executor import RankExecutor
from shuntserve_plugins.engines.vllm.lending import LOAD_FORMAT, lends
from shuntserve_plugins.engines.vllm.sampling import SeededRows
from shuntserve_plugins.engines.vllm.suited import ARCHITECTURES

WORKER = "shuntserve_plugins.engines.vllm.stage_worker.StageWorker"


def has_tokenizer(model_dir: str) -> bool:
    """Whether there is a tokenizer, which constraints on the text need."""
    return (Path(model_dir) / "tokenizer.json").exists()


def build_configuration(spec: WorkerSpec) -> VllmConfig:
    """The same on all ranks, but for the degree of the rank's stage."""
    launch, options = spec.launch, spec.options
    place = launch.ranks[spec.rank]
    kind = read_config(launch.model_dir).get("model_type", launch.model.family)
    arguments = EngineArgs(
        model=launch.model_dir,
        skip_tokenizer_init=not has_tokenizer(launch.model_dir),
        dtype=launch.model.dtype,
        max_model_len=longest(launch, options.block_size),
        generation_config="vllm",
        hf_overrides={"architectures": [ARCHITECTURES[kind]]},
        config_format="hf",  # not a params.json that lies beside it
        max_logprobs=-1,
        load_format=LOAD_FORMAT,
        model_loader_extra_config={
            "socket": place.store_socket,
            "shard": cattrs.unstructure(launch.shard(spec.rank)),
            "lend": lends(options.weights),
        },
        distributed_executor_backend=RankExecutor,
        worker_cls=WORKER,
        logits_processors=[SeededRows],
        pipeline_parallel_size=len(launch.layers),
        tensor_parallel_size=launch.tensor_parallel[0],
        block_size=options.block_size,
        kv_cache_memory_bytes=launch.kv_bytes,
        max_num_seqs=launch.max_batch,
        max_num_batched_tokens=max(options.max_batched_tokens, launch.max_batch),
        enable_chunked_prefill=True,
        enable_prefix_caching=options.prefix_caching,
        enforce_eager=options.enforce_eager,
        async_scheduling=False,
        disable_log_stats=True,
    )
    config = arguments.create_engine_config()
    config.parallel_config.world_size = len(launch.ranks)
    config.parallel_config.tensor_parallel_size = launch.tensor_parallel[place.stage]
    return config
