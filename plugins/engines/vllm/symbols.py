"""All of vLLM that this engine replaces, subclasses or relies on from the inside.

Each entry has the digest of its source as of the version that the engine is written for.  A test
for each fails when vLLM changes it: then read what changed, adapt what uses it, and only then put
the new digest here (`python -m shuntserve_plugins.engines.vllm.symbols` prints all of them).
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
from pathlib import Path

from attrs import frozen


@frozen
class Symbol:
    """One class, method or function."""

    module: str
    """Without the leading `vllm.`."""
    name: str
    used: str
    """Where we use it, and for what."""
    digest: str

    @property
    def label(self) -> str:
        """Its full name."""
        return f"vllm.{self.module}.{self.name}"


def source_digest(symbol: Symbol) -> str:
    """The digest of its source as installed, comments and docstrings left out.

    Imports nothing of vLLM.  Raises LookupError if it, or vLLM, is not there.
    """
    spec = importlib.util.find_spec("vllm")
    if spec is None or not spec.submodule_search_locations:
        raise LookupError("vLLM is not installed")
    path = Path(spec.submodule_search_locations[0]).joinpath(*symbol.module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    try:
        node: ast.AST = ast.parse(file.read_text())
    except OSError as error:
        raise LookupError(f"{symbol.label}: {error}") from error
    for part in symbol.name.split("."):
        node = _member(node, part, symbol)
    for inner in ast.walk(node):
        _drop_docstring(inner)
    return hashlib.sha256(ast.dump(node).encode()).hexdigest()[:16]


def _member(node: ast.AST, name: str, symbol: Symbol) -> ast.AST:
    for child in ast.iter_child_nodes(node):
        if getattr(child, "name", None) == name:
            return child
    raise LookupError(f"{symbol.label} is not there any more")


def _drop_docstring(node: ast.AST) -> None:
    body = getattr(node, "body", None)
    if not isinstance(body, list) or not body:
        return
    if isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
        del body[0]


SYMBOLS = (
    Symbol("v1.executor.abstract", "Executor.__init__", "executor: subclassed", "9c88b70d75e83fea"),
    Symbol(
        "v1.executor.abstract", "Executor.execute_model", "executor: replaced", "f8590b07efe6346c"
    ),
    Symbol(
        "v1.executor.abstract", "Executor.sample_tokens", "executor: replaced", "1dd2c0132e53ae1b"
    ),
    Symbol(
        "v1.executor.abstract",
        "Executor.initialize_from_config",
        "executor: goes through collective_rpc",
        "19acb1668584ba6a",
    ),
    Symbol(
        "v1.engine.core",
        "EngineCore.__init__",
        "driver: made when there is KV memory, on ranks that are there",
        "4746f6a97b400c4d",
    ),
    Symbol("v1.engine.core", "EngineCore.step", "driver: one step", "77de7f15d80bafdc"),
    Symbol(
        "v1.engine.core",
        "EngineCore.step_with_batch_queue",
        "driver: several steps under way",
        "c80d04b2d06a159a",
    ),
    Symbol(
        "v1.engine.core",
        "EngineCore.preprocess_add_request",
        "driver: makes the scheduler's request",
        "8213ebd59b4ce817",
    ),
    Symbol("v1.engine.core", "EngineCore.abort_requests", "driver: aborts", "36d189c78d9735e9"),
    Symbol("v1.engine", "EngineCoreRequest", "translate: what the core takes", "9b4f719b49be0267"),
    Symbol("v1.engine", "EngineCoreOutput", "translate: what it returns", "c150cee6f444ae3e"),
    Symbol(
        "v1.outputs",
        "LogprobsLists",
        "translate: the token's own logprob comes first",
        "f730244f1e9833b9",
    ),
    Symbol(
        "sampling_params",
        "SamplingParams.verify",
        "driver: what is wrong with a request",
        "5fc84827fafca090",
    ),
    Symbol(
        "v1.worker.worker_base",
        "WorkerWrapperBase.init_worker",
        "rank: hands our arguments to the worker",
        "19abbd72b5f7b0a3",
    ),
    Symbol(
        "v1.worker.worker_base",
        "WorkerWrapperBase.initialize_from_config",
        "rank: picks a rank's KV configuration",
        "90b98ba9841e96bb",
    ),
    Symbol(
        "v1.worker.gpu_worker", "Worker.__init__", "stage_worker: subclassed", "e857dd2fc51e370b"
    ),
    Symbol(
        "v1.worker.gpu_worker", "Worker.init_device", "stage_worker: extended", "85b1bcb3f129c180"
    ),
    Symbol(
        "v1.worker.gpu_worker",
        "Worker.execute_model",
        "groups: how hidden states are handed on",
        "1368fbeaa32c8a72",
    ),
    Symbol(
        "v1.worker.gpu_worker",
        "Worker.initialize_from_config",
        "lending: allocates inside a pool's context",
        "cf253cd24d241ed0",
    ),
    Symbol(
        "v1.worker.gpu_worker",
        "Worker._maybe_get_memory_pool_context",
        "stage_worker: replaced for KV memory",
        "13a13e43a4f8b839",
    ),
    Symbol(
        "v1.worker.gpu_worker",
        "init_worker_distributed_environment",
        "stage_worker: finds our groups made",
        "ef6b40c4d5060026",
    ),
    Symbol(
        "v1.worker.cpu_worker", "CPUWorker.__init__", "stage_worker: subclassed", "6e45c69506341e1e"
    ),
    Symbol(
        "v1.worker.cpu_worker",
        "CPUWorker.init_device",
        "stage_worker: extended",
        "7746f1ce7ec60924",
    ),
    Symbol(
        "v1.worker.gpu_worker",
        "Worker.determine_available_memory",
        "stage_worker: computes the largest step, with KV memory given",
        "fd978a90e056c88c",
    ),
    Symbol(
        "v1.worker.utils",
        "request_memory",
        "stage_worker: what must be free at the start; its words",
        "c3dc1b5a0628606b",
    ),
    Symbol(
        "v1.worker.gpu_model_runner",
        "GPUModelRunner.profile_run",
        "stage_worker: the largest step, without KV memory",
        "bad7b02968388a8a",
    ),
    Symbol(
        "utils.mem_utils",
        "MemorySnapshot",
        "stage_worker: measures the largest step",
        "2c9b87edc41785f7",
    ),
    Symbol(
        "v1.worker.cpu_worker",
        "CPUWorker.determine_available_memory",
        "stage_worker: replaced",
        "198dc23c783f39a2",
    ),
    Symbol(
        "v1.worker.cpu_worker",
        "CPUWorker.compile_or_warm_up_model",
        "stage_worker: extended",
        "b03a3035fc356739",
    ),
    Symbol(
        "v1.worker.utils",
        "allocate_kv_cache",
        "lending: its one torch.zeros is our memory",
        "7765cc1ba3268cce",
    ),
    Symbol(
        "v1.worker.gpu_model_runner",
        "GPUModelRunner._update_states",
        "resumption: puts states into `requests`",
        "2eb2df8682212b24",
    ),
    Symbol(
        "v1.worker.gpu_model_runner",
        "GPUModelRunner.initialize_kv_cache_tensors",
        "lending: allocates inside the context",
        "c41ac60d4552612c",
    ),
    Symbol(
        "v1.worker.gpu_input_batch",
        "CachedRequestState",
        "resumption: what is completed",
        "6b5a997bb000e1c4",
    ),
    Symbol(
        "v1.request", "Request.__init__", "resumption: state of a new request", "b7b816b652909026"
    ),
    Symbol(
        "v1.request",
        "Request.append_output_token_ids",
        "resumption: output tokens, block hashes",
        "c221adabfba92408",
    ),
    Symbol(
        "v1.core.sched.scheduler",
        "Scheduler.schedule",
        "resumption: statistics that may be absent",
        "0afd4b561401cafb",
    ),
    Symbol(
        "v1.core.sched.scheduler",
        "Scheduler.update_from_output",
        "driver: outputs of a step",
        "e8518c4a45480ca0",
    ),
    Symbol(
        "v1.structured_output",
        "StructuredOutputManager.grammar_init",
        "resumption: compiles in a future",
        "2551addccca9a662",
    ),
    Symbol(
        "v1.structured_output.request",
        "StructuredOutputRequest",
        "resumption: waits for that future",
        "88257b0ec204f3ae",
    ),
    Symbol(
        "v1.sample.sampler",
        "Sampler.sample",
        "sampling: draws by its topk_topp_sampler, which is replaced",
        "dcfca3ab8542edbe",
    ),
    Symbol(
        "v1.sample.ops.topk_topp_sampler",
        "apply_top_k_top_p",
        "sampling: filters in place of the sampler's own",
        "082e4f4e84fbaff1",
    ),
    Symbol(
        "distributed.parallel_state",
        "init_distributed_environment",
        "stage_worker: called first",
        "7764f4869047eb0a",
    ),
    Symbol(
        "distributed.parallel_state",
        "initialize_model_parallel",
        "groups: done by build_groups instead",
        "c2b26301e25ec10a",
    ),
    Symbol(
        "distributed.parallel_state",
        "ensure_model_parallel_initialized",
        "groups: accepts what is there",
        "9f076e37628afddc",
    ),
    Symbol(
        "distributed.parallel_state",
        "init_model_parallel_group",
        "groups: takes groups of unequal size",
        "e453e7b88ccbbd85",
    ),
    Symbol(
        "distributed.parallel_state",
        "GroupCoordinator.__init__",
        "groups: replaced by StagesGroup's",
        "0438bfc34481125a",
    ),
    Symbol(
        "distributed.parallel_state",
        "GroupCoordinator.isend_tensor_dict",
        "groups: replaced",
        "be6ba8323f6e054f",
    ),
    Symbol(
        "distributed.parallel_state",
        "GroupCoordinator.irecv_tensor_dict",
        "groups: replaced",
        "0a2595d78a8a3a1f",
    ),
    Symbol(
        "distributed.device_communicators.cpu_communicator",
        "_CPUSHMDistributed.__init__",
        "groups: its memory needs no name from then on",
        "89e131af2cabb268",
    ),
    Symbol(
        "distributed.device_communicators.cpu_communicator",
        "CpuCommunicator._all_group_ranks_share_shm_group_name",
        "stage_worker: without a common name, gloo",
        "fdac44346ed45a85",
    ),
    Symbol(
        "distributed.device_communicators.cpu_communicator",
        "_CPUSHMDistributed.make_group_name",
        "groups: the name, before the rank's number",
        "e09abfe3fe7111a8",
    ),
    Symbol(
        "distributed.device_communicators.cpu_communicator",
        "_CPUSHMDistributed._init_cpu_shm",
        "groups: returns when all have the memory",
        "73b1dcd57ee2e05a",
    ),
    Symbol("distributed.parallel_state", "_split_tensor_dict", "groups: used", "264c5c3ce0e28943"),
    Symbol(
        "distributed.utils", "get_pp_indices", "engine: VLLM_PP_LAYER_PARTITION", "f47b8eaea768d275"
    ),
    Symbol(
        "config.model",
        "ModelConfig.get_layers_start_end_indices",
        "stage_worker: a rank's place in the grid",
        "cebb0b06b96fb269",
    ),
    Symbol(
        "model_executor.model_loader.base_loader",
        "BaseModelLoader.load_model",
        "lending: extended",
        "480f200f427bf586",
    ),
    Symbol(
        "model_executor.model_loader.base_loader",
        "BaseModelLoader.create_model",
        "lending: extended",
        "479261e25940d1e8",
    ),
    Symbol(
        "model_executor.layers.linear",
        "UnquantizedLinearMethod.create_weights",
        "lending: torch.empty",
        "567ef7e5956c347e",
    ),
    Symbol(
        "model_executor.layers.linear",
        "UnquantizedLinearMethod.process_weights_after_loading",
        "lending: the flag against repacking",
        "17b722b8f72cf099",
    ),
    Symbol(
        "model_executor.layers.vocab_parallel_embedding",
        "UnquantizedEmbeddingMethod.process_weights_after_loading",
        "lending: undone",
        "42988f8b8a2330d3",
    ),
    Symbol(
        "model_executor.models.llama",
        "LlamaForCausalLM.__init__",
        "lending: names of parameters, tied tables",
        "d3920589fcc4f6fb",
    ),
    Symbol(
        "model_executor.models.qwen2",
        "Qwen2ForCausalLM.__init__",
        "lending: names of parameters, tied tables",
        "c4faff8f4dd2fbb9",
    ),
    Symbol(
        "model_executor.models.qwen3",
        "Qwen3ForCausalLM.__init__",
        "lending: names of parameters, tied tables",
        "b4f9913c9c9f0b05",
    ),
)


if __name__ == "__main__":
    for symbol in SYMBOLS:
        print(symbol.label, source_digest(symbol))  # noqa: T201
