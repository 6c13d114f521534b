"""openhearth as one more worker. Settings: threads; others as `openhearth.load` takes them."""

from __future__ import annotations

import time

from worker import serve

import openhearth
from openhearth.bench import Case, open_engine, run_prompts, weights_name


class Hearth:
    """A loaded model; an engine per shape of work, without prefix cache, over the same weights."""

    def __init__(self, path: str, settings: dict) -> None:
        options = {name: value for name, value in settings.items() if name != "threads"}
        self.model = openhearth.load(path, num_threads=settings["threads"], **options)
        self._shape, self._engine = None, None
        self.flags = f"{weights_name(self.model)} weights, {settings['threads']} threads"

    def run(self, prompts, new_tokens):
        shape = (len(prompts), len(prompts[0]), new_tokens)
        if shape != self._shape:
            self._engine = open_engine(self.model, Case("peers", "batch", *shape))
            self._shape = shape
        started = time.perf_counter()
        timed = run_prompts(self._engine, [tuple(prompt) for prompt in prompts], new_tokens)
        return (started, started + timed.first_s, started + timed.total_s,
                [list(row) for row in timed.token_ids])

    def score(self, ids):
        """Log-probability of every token but the first."""
        return self.model.engine.score(ids)


if __name__ == "__main__":
    serve(Hearth)
