"""Perplexity of the default model per weight format: `python bench/perplexity.py TEXT.jsonl --home FOLDER`.

TEXT.jsonl is the test split of GSM8K (openai/grade-school-math, MIT licence), checked by its sha256: each
problem's question, a line break, its answer, an empty line. The first 100,352 tokens are cut into windows of
512. Each window is scored in full by itself, after a BOS where the model's tokenizer adds one; the first
token of a window without BOS has nothing before it and is not scored. Perplexity is exp of minus the mean
log-probability over all windows.

Truth is `transformers` in float32 on the GGUF file that all others are made from. `peers/install.py` and
`peers/convert.py` come first, with the same folder; `report.py` makes the page.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peers.install import DEFAULT_HOME, python_of, read_installed
from peers.processes import Worker, WorkerFailed

from openhearth import chat, hardware, hub
from openhearth.config import Config
from openhearth.formats import open_checkpoint
from openhearth.kernels.select import chosen

SHA256 = "3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14"
WINDOW = 512
NUM_WINDOWS = 196


@dataclass(frozen=True)
class Row:
    """One engine on one file. file: in the folder's models, or None for the original GGUF file.

    Example: ``Row("llama.cpp", "Q8_0", "Q8_0.gguf", {"flash": True})``.
    """

    engine: str
    weights: str
    file: str | None
    settings: dict[str, Any]


LLAMA = {"flash": True, "kv": "f16", "ubatch": 1024}
ROWS = (
    Row("transformers", "f32", None, {"dtype": "float32", "attention": "sdpa"}),
    Row("openhearth", "f32", None, {"dtype": "float32"}),
    Row("openhearth", "BF16", "BF16.gguf", {}),
    Row("openhearth", "Q8_0", "Q8_0.gguf", {}),
    Row("openhearth", "Q4_1", None, {}),
    Row("openhearth", "Q4_0", "Q4_0.gguf", {}),
    Row("openhearth", "int8", None, {"weights": "int8"}),
    Row("openhearth", "int4", "BF16.gguf", {"weights": "int4"}),
    Row("llama.cpp", "BF16", "BF16.gguf", LLAMA),
    Row("llama.cpp", "Q8_0", "Q8_0.gguf", LLAMA),
    Row("llama.cpp", "Q4_1", None, LLAMA),
    Row("llama.cpp", "Q4_0", "Q4_0.gguf", LLAMA),
)


def read_text(path: Path) -> str:
    """Return the text. Raises: SystemExit for another file than the one that was meant."""
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != SHA256:
        raise SystemExit(f"error: {path} is another file than GSM8K's test split\n  sha256 {found}, "
                         f"expected {SHA256}")
    problems = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return "".join(f"{problem['question']}\n{problem['answer']}\n\n" for problem in problems)


def cut_windows(text: str, model: Path, num_windows: int) -> list[list[int]]:
    """Return the token ids of every window, BOS included where the tokenizer adds one."""
    tokenizer = chat.load_tokenizer(open_checkpoint(model))
    bos = list(tokenizer.encode("", add_special_tokens=True))[:1]
    ids = list(tokenizer.encode(text, add_special_tokens=False))
    return [bos + ids[start:start + WINDOW] for start in range(0, num_windows * WINDOW, WINDOW)]


def measure_row(row: Row, model: Path, windows: list[list[int]], home: Path, threads: int) -> dict[str, Any]:
    """Score every window. Raises: WorkerFailed."""
    started, total, count = time.perf_counter(), 0.0, 0
    with Worker(row.engine, python_of(home, row.engine), model, {"threads": threads, **row.settings},
                home) as worker:
        for window in windows:
            scores = worker.ask({"score": window})["logprobs"]
            if len(scores) != len(window) - 1:
                raise WorkerFailed(f"{row.engine} gave {len(scores)} scores for {len(window)} tokens")
            total += math.fsum(scores)
            count += len(scores)
    return {"engine": row.engine, "weights": row.weights, "file_bytes": os.path.getsize(model),
            "perplexity": round(math.exp(-total / count), 5), "num_scored": count,
            "seconds": round(time.perf_counter() - started, 1)}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Return the record of all rows that run here."""
    source = (options.model or hub.pull(hub.DEFAULT_MODEL, Config.from_env()).path).absolute()
    windows = cut_windows(read_text(options.text), source, options.windows)
    record = {"text": {"name": "GSM8K test split", "sha256": SHA256, "window": WINDOW,
                       "num_tokens": sum(map(len, windows)), "has_bos": len(windows[0]) > WINDOW},
              "source": {"name": source.name, "num_bytes": source.stat().st_size},
              "versions": {name: read_installed(options.home, name).get("version")
                           for name in ("transformers", "llama.cpp")},
              "settings": {"threads": options.threads, "isa": chosen().isa, "llama.cpp": LLAMA},
              "rows": [], "missing": []}
    for row in ROWS:
        if options.only and f"{row.engine}:{row.weights}" not in options.only:
            continue
        model = options.home / "models" / row.file if row.file else source
        try:
            found = measure_row(row, model, windows, options.home, options.threads)
        except (WorkerFailed, FileNotFoundError) as error:
            record["missing"].append({"engine": row.engine, "weights": row.weights})
            print(f"{row.engine} {row.weights}: {error}", file=sys.stderr, flush=True)
            continue
        record["rows"].append(found)
        print(f"{row.engine} {row.weights}: {found['perplexity']} in {found['seconds']} s", file=sys.stderr,
              flush=True)
    return record


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("text", type=Path, metavar="TEXT.jsonl")
    parser.add_argument("--model", type=Path, help="the GGUF file that all others are made from")
    parser.add_argument("--home", type=Path, default=DEFAULT_HOME)
    parser.add_argument("--threads", type=int, default=hardware.usable_cores())
    parser.add_argument("--windows", type=int, default=NUM_WINDOWS)
    parser.add_argument("--only", nargs="+", metavar="ENGINE:FORMAT", help="for example llama.cpp:Q8_0")
    parser.add_argument("--out", type=Path, help="also write the record here")
    options = parser.parse_args()
    text = json.dumps(measure(options), indent=1) + "\n"
    print(text, end="")
    if options.out:
        part = options.out.with_suffix(".part")
        part.write_text(text, encoding="utf-8")
        part.replace(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
