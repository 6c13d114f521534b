"""llama.cpp through the C interface that llama-cpp-python carries: many sequences in one batch.

Settings: threads; flash (flash attention); kv ("bf16" or "f16", the default of llama.cpp); ubatch (tokens
computed at once). A context is made per shape of work, as large as it needs, before the clock starts.
Sequences have a cache each (kv_unified off, the default), which was faster than one for all.
"""

from __future__ import annotations

import ctypes
import time

import llama_cpp
import numpy as np
from worker import serve

GGML_TYPES = {"f16": 1, "bf16": 30}
ROOM = 256
"""Contexts are rounded up to this many tokens, as llama.cpp does itself."""


class LlamaCpp:
    """A loaded GGUF file and one context at a time."""

    def __init__(self, path: str, settings: dict) -> None:
        self.settings = {"flash": True, "kv": "bf16", "ubatch": 512} | settings
        llama_cpp.llama_backend_init()
        self._silence = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self._silence, ctypes.c_void_p(0))
        self.model = llama_cpp.llama_model_load_from_file(
            path.encode(), llama_cpp.llama_model_default_params())
        if not self.model:
            raise SystemExit(f"llama.cpp cannot load {path}")
        vocab = llama_cpp.llama_model_get_vocab(self.model)
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(vocab)
        self._made_for, self._context, self._batch = None, None, None

    @property
    def flags(self) -> str:
        settings = self.settings
        return (f"flash attention {'on' if settings['flash'] else 'off'}, {settings['kv']} KV, "
                f"ubatch {settings['ubatch']}, {settings['threads']} threads")

    def run(self, prompts, new_tokens, **settings):
        self.settings |= settings
        self._open(len(prompts), max(map(len, prompts)) + new_tokens)
        ubatch = self.settings["ubatch"]
        started = time.perf_counter()
        tokens = [[] for _ in prompts]
        rows = [(row, token, position, position == len(prompt) - 1) for row, prompt in enumerate(prompts)
                for position, token in enumerate(prompt)]
        first = None
        for start in range(0, len(rows), ubatch):
            for row, token in self._decode(rows[start:start + ubatch]):
                tokens[row].append(token)
                first = first or time.perf_counter()
        for step in range(1, new_tokens):
            for row, token in self._decode([(row, drawn[-1], len(prompts[row]) + step - 1, True)
                                            for row, drawn in enumerate(tokens)]):
                tokens[row].append(token)
        return started, first, time.perf_counter(), tokens

    def score(self, ids):
        """Log-probability of every token but the first."""
        self._open(1, len(ids))
        self._fill([(0, token, position, True) for position, token in enumerate(ids)])
        logits_TV = np.ctypeslib.as_array(llama_cpp.llama_get_logits(self._context),
                                          shape=(len(ids), self.vocab_size))[:-1]
        top_T = logits_TV.max(axis=1)
        sums_T = np.exp(logits_TV - top_T[:, None]).sum(axis=1, dtype=np.float64)
        chosen_T = logits_TV[np.arange(len(ids) - 1), np.asarray(ids[1:])]
        return (chosen_T - top_T - np.log(sums_T)).tolist()

    def _open(self, num_sequences: int, num_tokens: int) -> None:
        """A cleared context for the shape; the one at hand when it fits exactly."""
        each = -(-num_tokens // ROOM) * ROOM
        wanted = (num_sequences, each, *self.settings.values())
        if self._made_for != wanted:
            if self._context:
                llama_cpp.llama_batch_free(self._batch)
                llama_cpp.llama_free(self._context)
            settings, params = self.settings, llama_cpp.llama_context_default_params()
            params.n_ctx, params.n_seq_max = each * num_sequences, num_sequences
            params.n_batch = params.n_ubatch = settings["ubatch"]
            params.n_threads = params.n_threads_batch = settings["threads"]
            params.flash_attn_type = int(settings["flash"])
            params.type_k = params.type_v = GGML_TYPES[settings["kv"]]
            self._context = llama_cpp.llama_init_from_model(self.model, params)
            if not self._context:
                raise SystemExit("llama.cpp refused the context's settings")
            self._batch = llama_cpp.llama_batch_init(settings["ubatch"], 0, 1)
            self._made_for = wanted
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)

    def _fill(self, rows) -> None:
        """Compute rows of (sequence, token, position, whether its logits are wanted)."""
        batch = self._batch
        batch.n_tokens = len(rows)
        for index, (row, token, position, is_wanted) in enumerate(rows):
            batch.token[index], batch.pos[index] = token, position
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, row
            batch.logits[index] = is_wanted
        code = llama_cpp.llama_decode(self._context, batch)
        if code:
            raise SystemExit(f"llama_decode gave {code}")

    def _decode(self, rows) -> list[tuple[int, int]]:
        """Compute rows and return (sequence, most likely token) where logits were wanted."""
        self._fill(rows)
        drawn = []
        for index, (row, _, _, is_wanted) in enumerate(rows):
            if is_wanted:
                logits = llama_cpp.llama_get_logits_ith(self._context, index)
                drawn.append((row, int(np.ctypeslib.as_array(logits, shape=(self.vocab_size,)).argmax())))
        return drawn


if __name__ == "__main__":
    serve(LlamaCpp)
