"""vLLM on the CPU, in this process, one engine step at a time. Settings: threads; batched_tokens; memory_gib.

Prefix caching is off, compilation on. vLLM pins its threads: VLLM_CPU_OMP_THREADS_BIND is set to the first
cores, because its own choice leaves one of two cores out.
"""

from __future__ import annotations

import os
import time

from worker import serve


class Vllm:
    """A loaded Hugging Face folder."""

    def __init__(self, path: str, settings: dict) -> None:
        threads = settings["threads"]
        os.environ |= {"VLLM_CPU_OMP_THREADS_BIND": f"0-{threads - 1}", "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
                       "VLLM_CPU_KVCACHE_SPACE": str(settings["memory_gib"]), "HF_HUB_OFFLINE": "1",
                       "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
        from vllm import LLM, SamplingParams
        self.params = SamplingParams
        self.llm = LLM(model=path, dtype="bfloat16", max_model_len=2048, enable_prefix_caching=False,
                       max_num_seqs=64, max_num_batched_tokens=settings["batched_tokens"],
                       skip_tokenizer_init=True, seed=0)
        self._count = 0
        self.flags = f"bfloat16, compiled, {settings['batched_tokens']} batched tokens, {threads} threads"

    def run(self, prompts, new_tokens):
        engine = self.llm.llm_engine
        sampling = self.params(temperature=0.0, max_tokens=new_tokens, ignore_eos=True, detokenize=False)
        started, first, tokens = time.perf_counter(), None, {}
        names = []
        for prompt in prompts:
            self._count += 1
            names.append(str(self._count))
            engine.add_request(names[-1], {"prompt_token_ids": prompt}, sampling)
        while engine.has_unfinished_requests():
            for output in engine.step():
                tokens[output.request_id] = list(output.outputs[0].token_ids)
                first = first or time.perf_counter()
        last = time.perf_counter()
        return started, first, last, [tokens[name] for name in names]


if __name__ == "__main__":
    serve(Vllm)
