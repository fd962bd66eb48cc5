"""What the folder holds: packages, and the parts of them that nothing here needs.

A machine that it is for has torch, Triton, `cuda-bindings`, numpy, aiohttp, attrs, rich and pytest,
with what these need themselves.  `VLLM` was found by importing all that our engine imports on such
a machine, without a GPU, and by leaving packages out one at a time.
"""

from __future__ import annotations

VLLM_VERSION = "0.32.0"

BASE = (
    "cattrs",
    "click",
    "jinja2",
    "markupsafe",
    "msgpack",
    "msgspec",
    "pluggy",
    "prometheus_client",
    "psutil",
    "setproctitle",
    "tokenizers",
    "tomli",
    "typing_extensions",
    "uvloop",
    "xxhash",
)

VLLM = (
    "annotated-doc",
    "annotated-types",
    "anyio",
    "apache-tvm-ffi",
    "cachetools",
    "cbor2",
    "certifi",
    "charset-normalizer",
    "cloudpickle",
    "dill",
    "einops",
    "fastapi",
    "h11",
    "httpcore2",
    "httpx2",
    "huggingface_hub",
    "llguidance",
    "openai",
    "oss-harmony",
    "partial-json-parser",
    "pillow",
    "py-cpuinfo",
    "pybase64",
    "pydantic",
    "pydantic_core",
    "pydantic-extra-types",
    "python-multipart",
    "pyyaml",
    "pyzmq",
    "regex",
    "requests",
    "safetensors",
    "sentencepiece",
    "sniffio",
    "starlette",
    "tiktoken",
    "tqdm",
    "transformers",
    "truststore",
    "typing-inspection",
    "urllib3",
    "xgrammar",
)

LEFT_OUT = (
    "*.pyi",
    "*.pyx",
    "*.h",
    "*.hpp",
    "*.cuh",
    "*/tests/*",
    "*/RECORD",
    "uvloop/*.c",
    "pillow.libs/libavif*",
    "PIL/_avif*",
    "tvm_ffi/3rdparty/*",
)

LEFT_OUT_OF_VLLM = (
    "*.so.debug",
    "vllm/*.so",
    "vllm/vllm-rs",
    "vllm/third_party/deep_gemm/*",
    "vllm/third_party/fmha_sm100/*",
    "vllm/third_party/tml_fa4/*",
    "vllm/vllm_flash_attn/cute/*",
    "vllm/kernels/helion/configs/*",
    "vllm/model_executor/layers/*/configs/*.json",
    "vllm/model_executor/layers/*/*/configs/*.json",
    "vllm/entrypoints/serve/instrumentator/static/*",
    *(
        f"transformers/models/{letters}*/{kind}_*.py"
        for kind in ("image_processing", "video_processing", "modeling", "modular")
        # All models but `auto`, `llama` and those of Qwen.
        for letters in ("[b-km-pr-z]", "a[!u]", "l[!l]", "q[!w]")
    ),
)


def libraries(arch: int) -> tuple[str, ...]:
    """vLLM's libraries that a Llama needs on this kind of card."""
    attention = "_vllm_fa3_C" if arch // 10 == 9 else "_vllm_fa2_C"
    return (
        "vllm/_C_stable_libtorch.abi3.so",
        "vllm/_moe_C_stable_libtorch.abi3.so",
        f"vllm/vllm_flash_attn/{attention}.abi3.so",
    )
