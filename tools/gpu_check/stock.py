"""Stock vLLM on the same requests: `python -m gpu_check.stock MODEL ANSWER STREAMS ...`."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any


def main() -> None:
    """Generate twice, the first time to warm up; write tokens a second."""
    model, answer, *numbers = sys.argv[1:]
    streams, prompt, output, vocab = map(int, numbers)
    from vllm import LLM, SamplingParams

    from gpu_check.vllm_engines import requests

    llm: Any = LLM(
        model=model,
        skip_tokenizer_init=True,
        enforce_eager=True,
        max_model_len=1024,
        max_num_seqs=streams,
        gpu_memory_utilization=0.5,
    )
    rate = 0.0
    for length in (8, output):
        asked = requests(streams, prompt, length, vocab)
        prompts: Any = [{"prompt_token_ids": list(request.prompt)} for request in asked]
        sampling = [
            SamplingParams(
                max_tokens=length,
                min_tokens=length,
                temperature=request.sampling.temperature,
                top_p=request.sampling.top_p,
                presence_penalty=request.sampling.presence_penalty,
                frequency_penalty=request.sampling.frequency_penalty,
                detokenize=False,
            )
            for request in asked
        ]
        began = time.perf_counter()
        done = llm.generate(prompts, sampling, use_tqdm=False)
        tokens = sum(len(one.outputs[0].token_ids) for one in done)
        rate = tokens / (time.perf_counter() - began)
    Path(answer).write_text(json.dumps({"rate": rate}))


if __name__ == "__main__":
    main()
