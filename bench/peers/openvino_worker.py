"""OpenVINO GenAI with continuous batching, one step at a time. Settings: threads; batched_tokens.

Prefix caching is off. The cache of keys and values keeps OpenVINO's own precision for the CPU (8 bits).
"""

from __future__ import annotations

import time

import numpy as np
import openvino
import openvino_genai
from worker import serve


class OpenVino:
    """A loaded OpenVINO folder (bf16, int8 or int4 weights)."""

    def __init__(self, path: str, settings: dict) -> None:
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.enable_prefix_caching = False
        scheduler.max_num_batched_tokens = settings["batched_tokens"]
        scheduler.max_num_seqs = 64
        scheduler.cache_size = 2
        properties = {"INFERENCE_NUM_THREADS": settings["threads"], "PERFORMANCE_HINT": "LATENCY"}
        self.pipe = openvino_genai.ContinuousBatchingPipeline(path, scheduler, "CPU", properties)
        self._count = 0
        self.flags = f"{settings['batched_tokens']} batched tokens, {settings['threads']} threads"

    def run(self, prompts, new_tokens):
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = config.min_new_tokens = new_tokens
        config.ignore_eos, config.do_sample = True, False
        inputs = [openvino.Tensor(np.array([prompt], dtype=np.int64)) for prompt in prompts]
        started, first = time.perf_counter(), None
        handles = []
        for ids in inputs:
            handles.append(self.pipe.add_request(self._count, ids, config))
            self._count += 1
        tokens = [[] for _ in prompts]
        while self.pipe.has_non_finished_requests():
            self.pipe.step()
            for row, handle in enumerate(handles):
                if handle.can_read():
                    for output in handle.read().values():
                        tokens[row].extend(output.generated_ids)
                    first = first or time.perf_counter()
        return started, first, time.perf_counter(), tokens


if __name__ == "__main__":
    serve(OpenVino)
