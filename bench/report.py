"""Pages from results: `python bench/report.py` writes them, `--check` tells whether they are up to date.

`results/cpu.json` gives docs/performance.md and its charts, `cpu-avx512.json`, `cpu-avx2.json` and
`wide.json` sections of it, `results/perplexity.json`, `learning.json` and `sft_curve.json` docs/results.md,
`results/on_policy.json` the plot and its numbers in docs/tune.md.
Where a results file is missing, its pages are left alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from chart import COLOURS, bar_chart, line_chart
from table import table as _table
from wide_section import wide_section

ROOT = Path(__file__).resolve().parent.parent
CHARTS = {"decode": "One stream", "prefill": "Reading a prompt", "batch": "Many streams"}


def performance_pages(record: dict[str, Any], held_back: list[dict[str, Any]],
                      wide: dict[str, Any] | None = None) -> dict[str, str]:
    """Return file name -> text of docs/performance.md and its charts.

    held_back: records in which nobody used all instructions. wide: that of `wide.py`.
    """
    speed, training = _split(record["rows"])
    by_work = _by_work(speed)
    pages, images = {}, []
    for kind, title in CHARTS.items():
        groups = {work: _rates(rows) for work, rows in by_work.items() if work.startswith(f"{kind}_")}
        if groups:
            pages[f"performance-{kind}.svg"] = bar_chart(title, "tokens per second", groups)
            images.append(f"![{title}, tokens per second](performance-{kind}.svg)")
    sections = [
        PERFORMANCE_HEAD, _speed_table(by_work), *images,
        *([TRAINING_HEAD, _training_table(training), _parts_table(training)] if training else []),
        *([wide_section(wide)] if wide else []),
        COLD_HEAD, _cold_table(record["cold_start"]), *_held_back_texts(held_back),
        FLAGS_HEAD + _by_hand_text(record["settings"]), _flags_table(record["rows"]), "## The machine",
        _machine_text(record), PERFORMANCE_AGAIN]
    pages["performance.md"] = "\n\n".join(sections) + "\n"
    return pages


def results_pages(found: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Return file name -> text of docs/results.md and its chart, with a section for each record there is.

    found: name of a results file -> record.
    """
    sections, pages = [RESULTS_HEAD], {}
    if "learning" in found:
        sections += [LEARNING_HEAD, _learning_table(found["learning"]["rows"])]
    curves = [found[name] for name in CURVES if name in found]
    if curves:
        pages["results-sft.svg"] = line_chart(
            f"Loss of each step in {_dtype(curves[0])}, mean of {SMOOTHED}", "step",
            {name: _smooth(curve["losses"]) for name, curve in curves[0]["curves"].items()})
        sections += [_curve_head(curves[0]), *map(_curve_text, curves),
                     "![Loss by step, here and in TRL](results-sft.svg)"]
    served = [found[name] for name in SERVED if name in found]
    if served:
        sections += [CLIENTS_HEAD.format(**{name: served[0][name] for name in ("peer", "model", "cores")}),
                     *(_clients_text(record) for record in served)]
    if "soak" in found:
        sections.append(_soak_text(found["soak"]))
    if "perplexity" in found:
        sections += _perplexity_sections(found["perplexity"])
    return pages | {"results.md": "\n\n".join(sections) + "\n"}


def _learning_table(rows: list[dict[str, Any]]) -> str:
    lines = []
    for row in rows:
        before, after = (f"{100 * score['accuracy']:.1f} ({100 * score['low']:.1f} to "
                         f"{100 * score['high']:.1f})" for score in (row["before"], row["after"]))
        gain = 100 * (row["after"]["accuracy"] - row["before"]["accuracy"])
        lines.append([f"[{row['name']}](../recipes/{row['name']}.toml)",
                      f"{row['num_problems']:,} of `{row['task']}`", before, after, f"{gain:+.1f}",
                      f"{row['steps']}", f"{row['samples']:,}",
                      f"{row['seconds'] / 60:.0f} min" + (f" ({row['note']})" if row["note"] else "")])
    return _table(["recipe", "problems held out", "before, %", "after, %", "points", "steps",
                   "completions", "time"], lines)


def _dtype(record: dict[str, Any]) -> str:
    return record["settings"].get("dtype", "bfloat16")


def _curve_head(record: dict[str, Any]) -> str:
    settings = record["settings"]
    return CURVE_HEAD.format(
        trl=record["versions"]["trl"], steps=settings["steps"], batch_size=settings["batch_size"],
        tokens=f"{settings['tokens']:,}", rank=settings["rank"], rate=settings["learning_rate"],
        held_out=settings["held_out"])


def _curve_text(record: dict[str, Any]) -> str:
    apart = record["apart"]
    lines = [[name, f"{curve['before']:.4f}", f"{curve['after']:.4f}"]
             for name, curve in record["curves"].items()]
    about = CURVE.format(dtype=_dtype(record), ours=f"{apart['openhearth and TRL']:.4f}",
                         theirs=f"{apart['TRL and TRL']:.4f}")
    return f"{about}\n{_table(['', 'held-out loss before', 'after'], lines)}"


def _clients_text(record: dict[str, Any]) -> str:
    lines = []
    for row in record["rows"]:
        cells = []
        for name in ("openhearth", "peer"):
            waits = row[name]["first_token_s"]
            cells += [f"{row[name]['tokens_per_s']:,.0f}", f"{waits['p50']:.2f} / {waits['p99']:.2f}"]
        lines.append([f"{row['clients']}", *cells,
                      f"**{row['ratio']:.2f}x** ({min(row['ratios']):.2f} to {max(row['ratios']):.2f})",
                      f"`{row['command']}`"])
    about = CLIENTS_WORK.format(
        words=record["words"], tokens=record["tokens"], rounds=len(record["rows"][0]["ratios"]),
        seconds=record["seconds"], weights=record["weights"], cpu=record["cpu"],
        amx=" with AMX" if "AMX" in record["features"] else " without AMX",
        tried=max(1, len(record["rows"][0]["tried"])))
    return f"{about}\n" + _table(["clients", "openhearth, tokens/s", "first token, s: median / 99 %",
                                  f"{record['peer']}, tokens/s", "first token, s: median / 99 %", "ratio",
                                  "its command"], lines)


def _soak_text(record: dict[str, Any]) -> str:
    waits, gaps = (record[name] for name in ("first_token_s", "between_tokens_s"))
    return SOAK.format(
        **{name: record[name] for name in ("model", "cores", "clients", "words", "tokens", "failures")},
        minutes=record["wall_s"] / 60, asked=record["answers"] + record["left"], left=record["left"],
        rate=record["tokens_per_s"], first=waits["p50"], last=waits["p99"], gap=1000 * gaps["p50"],
        wide=1000 * gaps["p99"], overhead=100 * record["overhead_share"], grown=record["memory_grew_mib"],
        problems=", ".join(record["problems"]) or "none")


def _smooth(values: list[float]) -> list[float]:
    """Running means of SMOOTHED values, the first of fewer."""
    return [statistics.fmean(values[max(0, end - SMOOTHED):end]) for end in range(1, len(values) + 1)]


def _perplexity_sections(record: dict[str, Any]) -> list[str]:
    rows = {(row["engine"], row["weights"]): row for row in record["rows"]}
    truth = rows["transformers", "f32"]["perplexity"]
    lines = []
    for weights in dict.fromkeys(weights for _, weights in rows):
        ours, theirs = (rows.get((engine, weights)) for engine in ("openhearth", "llama.cpp"))
        size = (ours or theirs or rows["transformers", "f32"])["file_bytes"]
        lines.append([weights, f"{size / 1e6:.1f}" if weights not in ("f32", "int8", "int4") else "-",
                      *_perplexity_cells(ours, truth), *_perplexity_cells(theirs, truth)])
    table = _table(["format", "file, MB", "openhearth", "change", "llama.cpp", "change"], lines)
    text, versions = record["text"], record["versions"]
    about = FORMATS_HEAD.format(
        tokens=text["num_tokens"], window=text["window"], sha256=text["sha256"],
        source=record["source"]["name"],
        bos="after a BOS" if text["has_bos"] else "this model's tokenizer adds no BOS",
        truth=f"{truth:.4f}", transformers=versions["transformers"], llama=versions["llama.cpp"],
        isa=record["settings"]["isa"])
    return [f"{about}\n{table}", FORMATS_TAIL]


def tune_page(record: dict[str, Any], text: str) -> dict[str, str]:
    """Return the plot of docs/tune.md, and that page with its numbers between the two marks renewed."""
    labels = ["equal bits", *(f"up to {edge:g}" for edge in record["edges"][1:]),
              f"above {record['edges'][-1]:g}"]
    groups = {label: {name: 100 * row["shares"][place] for name, row in record["rows"].items()}
              for place, label in enumerate(labels)}
    ours, theirs = record["rows"]["openhearth"], record["rows"]["transformers"]
    settings, versions = record["settings"], record["versions"]
    told = ON_POLICY.format(
        tokens=f"{ours['num_tokens']:,}", completions=settings["completions"],
        prompts=settings["num_prompts"], transformers=versions["transformers"], dtype=settings["dtype"],
        mean=f"{theirs['mean_difference']:.3f}", most=f"{theirs['max_difference']:.2f}",
        least=f"{theirs['least_ratio']:.2f}", largest=f"{theirs['largest_ratio']:.2f}",
        equal=f"{100 * theirs['equal_share']:.1f}", our_most=f"{ours['max_difference']:g}",
        our_equal=f"{100 * ours['equal_share']:g}")
    before, _, rest = text.partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    return {"tune-ratios.svg": bar_chart("How far importance ratios are from 1", "% of tokens", groups),
            "tune.md": f"{before}{MARKS[0]}\n{told}\n{MARKS[1]}{after}"}


def _split(rows: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the rows of `run.py`, and those of `train.py`."""
    training = [row for row in rows if "memory_ratio" in row]
    return [row for row in rows if row not in training], training


def _by_work(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    by_work: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_work.setdefault(row["work"], []).append(row)
    return by_work


def _held_back_texts(records: list[dict[str, Any]]) -> list[str]:
    texts = [HELD_BACK_HEAD] if records else []
    for record in records:
        isa, limits = record["settings"]["isa"], record["machine"]
        speed, training = _split(record["rows"])
        texts += [f"### {isa}", _speed_table(_by_work(speed)),
                  f"{limits['cpu']}, commit {record['commit']}, {record['settings']['rounds']} rounds, "
                  f"{limits['bandwidth_bytes_per_s'] / 1e9:.1f} GB/s, "
                  f"{limits['matmul_flops_per_s'] / 1e12:.2f} TFLOP/s of products; llama.cpp: "
                  f"{speed[0]['peer_flags'].partition('threads, ')[2]}."]
        if training:
            texts += ["Training, as above:", _training_table(training), _parts_table(training),
                      f"Commit {training[0]['commit']}, "
                      f"{training[0]['bf16_matmul_flops_per_s'] / 1e12:.2f} TFLOP/s of bfloat16 products."]
    return texts


def _rates(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Tokens per second per program; ours is the median over its pairs with every peer."""
    ours = statistics.median(row["tokens_per_s"] for row in rows)
    return {"openhearth": ours} | {row["peer"]: row["peer_tokens_per_s"] for row in rows}


def _speed_table(by_work: dict[str, list[dict[str, Any]]]) -> str:
    seen = {row["peer"] for rows in by_work.values() for row in rows}
    peers = sorted(seen, key=[*COLOURS, *sorted(seen)].index)
    lines = []
    for work, rows in by_work.items():
        cells = {row["peer"]: f"{row['peer_tokens_per_s']:,.0f}, **{row['ratio']:.2f}x** "
                              f"({min(row['ratios']):.2f} to {max(row['ratios']):.2f})" for row in rows}
        share = statistics.median(row["share_of_limit"] for row in rows)
        lines.append([work, rows[0]["weights"], f"{_rates(rows)['openhearth']:,.0f}", f"{100 * share:.0f}%",
                      *(cells.get(peer, "-") for peer in peers)])
    return _table(["row", "weights", "openhearth", "of the limit", *peers], lines)


def _training_table(rows: list[dict[str, Any]]) -> str:
    gib = 2**30
    return _table(
        ["step", "learns", "beside", "openhearth, s", "other, s", "ratio", "MFU", "other's MFU",
         "peak memory, GiB", "other's", "share"],
        [[row["work"], row["weights"], f"{row['peer']}", f"{row['seconds']:.2f}",
          f"{row['peer_seconds']:.2f}",
          f"**{row['ratio']:.2f}x** ({min(row['ratios']):.2f} to {max(row['ratios']):.2f})",
          f"{100 * row['mfu']:.0f}%", f"{100 * row['peer_mfu']:.0f}%",
          f"{row['peak_memory_bytes'] / gib:.2f}", f"{row['peer_peak_memory_bytes'] / gib:.2f}",
          f"{100 * row['memory_ratio']:.0f}%"] for row in rows])


def _parts_table(rows: list[dict[str, Any]]) -> str:
    parts = ["generation", "forward", "backward", "optimizer"]
    lines = []
    for row in rows:
        for who, found in (("openhearth", row["parts"]), (row["peer"], row["peer_parts"])):
            lines.append([row["work"], who, *(f"{found[part]:.2f}" if part in found else "-"
                                              for part in parts)])
    return _table(["step", "program", *(f"{part}, s" for part in parts)], lines)


def _cold_table(rows: list[dict[str, Any]]) -> str:
    return _table(["program", "weights", "first token, s", "peak memory, MiB"],
                  [[row["engine"], row["weights"], f"{row['seconds']:.2f}",
                    f"{row['peak_memory_bytes'] / 2**20:,.0f}"] for row in rows])


def _flags_table(rows: list[dict[str, Any]]) -> str:
    return _table(["row", "program", "version", "settings"],
                  [[row["work"], row["peer"], row["peer_version"], row["peer_flags"]] for row in rows])


def _by_hand_text(settings: dict[str, Any]) -> str:
    """Return the exceptions to the search, which whoever measured notes in the record."""
    return "".join(f"\n\nNot searched, but set by hand: {what}." for what in settings.get("set_by_hand", []))


def _machine_text(record: dict[str, Any]) -> str:
    machine, settings = record["machine"], record["settings"]
    missing = "".join(f"\n- Not measured: {name}: {reason}" for name, reason in record["missing"].items())
    loads = max((row.get("foreign_load", 0.0) for row in record["rows"]), default=0.0)
    return (f"- {machine['cpu']}: {', '.join(machine['features'])}; {machine['cores']} cores, "
            f"{machine['last_cache_bytes'] / 2**20:.0f} MiB of last-level cache, "
            f"{machine['memory_bytes'] / 2**30:.0f} GiB of memory\n"
            f"- measured limits: {machine['bandwidth_bytes_per_s'] / 1e9:.1f} GB/s read from memory, "
            f"{machine['matmul_flops_per_s'] / 1e12:.2f} TFLOP/s of products (torch)\n"
            f"- {settings['threads']} threads, {settings['rounds']} rounds, commit {record['commit']}\n"
            f"- other programs used up to {100 * loads:.0f}% of the cores in a counted round{missing}")


def _perplexity_cells(row: dict[str, Any] | None, truth: float) -> list[str]:
    if row is None:
        return ["-", "-"]
    return [f"{row['perplexity']:.4f}", f"{100 * (row['perplexity'] / truth - 1):+.2f}%"]


PERFORMANCE_HEAD = """\
# Performance

SmolLM2-135M-Instruct beside other programs on one machine. Generated by `bench/report.py` from
`bench/results/cpu.json`.

Every program has the same weights, prompts of the same random token ids and the same number of
threads, in a process of its own, and takes turns with openhearth; no prompt comes twice. A ratio is
the median over the rounds of openhearth's tokens per second over the other program's (lowest and
highest round in brackets); above 1 openhearth is faster. `decode` is one stream, 32 tokens of
prompt and 256 generated, named after the format of the weights; `prefill` counts a prompt's tokens
up to the first one generated; `batch` is 8, 32 or 64 prompts of 64 tokens with 128 generated each,
generated tokens over the whole time. Where a row does not name a format, every program has the one
that was fastest for it. The limit is what the machine allows: every weight and cached number read
once per step at the measured memory bandwidth, or the products at the measured bfloat16 rate,
whichever takes longer."""
TRAINING_HEAD = """\
## Training

One step beside TRL's trainers (with PEFT where LoRA learns) and beside a fine-tuning loop in plain
PyTorch on the model of `transformers`: the same weights in bfloat16, the same tokens, the same number
of threads, one step of each in turn, the first of a process left out. `grpo_step`: 4 prompts of 36
tokens, 8 completions of 128 each, none shorter, and one update. `sft_lora` and `sft_full`: 8 samples of
512 tokens. LoRA has rank 16 on all linear layers. The others hold weights and moments in bfloat16,
openhearth float32 masters and moments beside bfloat16 weights. MFU counts the operations that the
update needs, the same for both sides (`tune/memory.py: training_flops`), over the time outside of
generation and the measured rate of bfloat16 products. Memory is the peak of the process and of those
that it started."""
COLD_HEAD = """\
## Start and memory

From the start of the process to the first token after a prompt of 32, files in the page cache; peak
resident memory after 64 more tokens (a file mapped into memory counts)."""
HELD_BACK_HEAD = """\
## With fewer instructions

The same rows where nobody may use more than AVX-512 (with its bfloat16 and 8-bit products) or AVX2:
`HEARTH_ISA`, and llama.cpp built for it. llama.cpp rounds what it multiplies with quantised weights to
8 bits; openhearth does so where the weights end in `_bytes` (`--weights int4`, `int8`). A share above
100% is decoding that read more per second than the memory gave when it was measured: a last-level cache
keeps part of so small a model, and the speed of a shared machine changes by the hour; or it is products of
8-bit numbers, beside the rate of torch's bfloat16 ones (with AVX2, which has none, float32)."""
FLAGS_HEAD = """\
## Settings that were best

Tried before measuring, the fastest kept: flash attention on and off, keys and values in bf16 and
f16, 512 and 2048 tokens at once for llama.cpp, and every format of the weights that a program has.
vLLM, transformers, TRL and the PyTorch loop run with tcmalloc preloaded; of the last two the number of
sequences in one forward was tried as well."""
PERFORMANCE_AGAIN = """\
## Again

```sh
hearth pull smollm2
python bench/peers/install.py --home FOLDER   # each program into its own environment; builds llama.cpp
python bench/peers/convert.py --home FOLDER   # one model, every program's format
python bench/peers/run.py --home FOLDER --explore --out bench/results/cpu.json
python bench/peers/run.py --home FOLDER --explore --isa avx2 --no-cold --out bench/results/cpu-avx2.json
python bench/peers/train.py --home FOLDER --out bench/results/cpu.json
python bench/wide.py --home FOLDER --out bench/results/wide.json   # writes its own random models
python bench/report.py
```

`run.py --quick` compares with llama.cpp alone, in one round. `hearth bench` measures the same rows
of openhearth without any other program. A busy neighbour halves results and more: rounds with
foreign load are repeated, and the machine should be idle."""
MARKS = ("<!-- on-policy: written by bench/report.py -->", "<!-- on-policy: end -->")
ON_POLICY = """\
Elsewhere sampler and trainer disagree before anything was learned. With `transformers` {transformers} in
{dtype}, {tokens} tokens ({completions} completions of {prompts} prompts) drawn with its cache and scored
by the forward that training runs differ by {mean} on average and by up to {most}: importance ratios from
{least} to {largest}, {equal} % of the tokens with equal bits. Here the largest difference is {our_most},
and {our_equal} % have equal bits (`bench/peers/on_policy.py`).

![How far importance ratios are from 1](tune-ratios.svg)"""
SMOOTHED = 10
RESULTS_HEAD = """\
# Results

What recipes teach, and what weight formats cost. Generated by `bench/report.py` from
`bench/results/`."""
LEARNING_HEAD = """\
## What recipes teach

Recipes of `recipes/` as they stand, run on the default model and two cores, and `hearth eval` on problems
that training never asks, before and after, greedy. Intervals are Wilson's, 95 %. The receipts of runs and
evaluations, with seeds, versions and hashes, are in `bench/results/receipts/`; the same commit, seed and
kind of CPU give the same bits. `python bench/learning.py` adds a row."""
CURVE_HEAD = """\
## Fine-tuning beside TRL

The same LoRA fine-tuning here and in TRL {trl} (`bench/peers/learning.py`): GSM8K's training split, {steps}
steps of {batch_size} samples ({tokens} tokens), rank {rank}, learning rate {rate}, the same token ids in the
same order; only the adapter's first numbers are drawn differently. Held-out loss is that of the answers of
{held_out} test problems."""
CURVE = """\
With {dtype} the curve here is {ours} from TRL's at a step, on average; TRL's two seeds are {theirs} apart.
"""
CURVES = ("sft_curve_float32", "sft_curve")
CLIENTS_HEAD = """\
## Many clients at once

`hearth serve` beside {peer} (`bench/load.py --peer`), {model} over HTTP on {cores} cores: streaming chats
from so many clients at a time, both servers in turns; clients and servers share the cores. Tokens are those
that clients received, the ratio the median of the paired rounds (lowest to highest). Where several commands
of the other server were tried, the one that was fastest alone with so many clients is compared.
"""
CLIENTS_WORK = """\
{cpu}{amx}: prompts of {words[0]} to {words[1]} words, answers of {tokens[0]} to {tokens[1]} tokens,
{rounds} rounds of {seconds:.0f} s each; weights here: {weights}; commands tried: {tried}.
"""
SERVED = ("serve", "serve_short", "serve_avx512", "serve_short_avx512")
SOAK = """\
## Clients that come and go

`hearth serve` ({model}, {cores} cores, clients on the same ones) for {minutes:.0f} minutes with {clients}
streaming clients at a time, prompts of {words[0]} to {words[1]} words, answers of {tokens[0]} to {tokens[1]}
tokens (`bench/load.py`): {asked:,} requests, {left:,} of them left in the middle of the answer, {failures}
failed; {rate:.0f} tokens/s, first token after {first:.2f} s (99 %: {last:.2f} s), {gap:.0f} ms between tokens
(99 %: {wide:.0f} ms). HTTP, templates and detokenising took {overhead:.1f} % of the engine's processor time.
Left over on the idle server (pages, threads, files, leases): {problems}; memory grew by {grown:.0f} MiB.
"""
FORMATS_HEAD = """\
## What a weight format costs

Perplexity of SmolLM2-135M-Instruct on {tokens:,} tokens of GSM8K's test split (questions and
answers; sha256 of the file `{sha256}`), windows of {window} tokens scored in full ({bos}). All
files are made from `{source}` by llama.cpp's own quantiser, so its 4-bit blocks are what the
original is: Q4_1 is the file itself, and Q4_0 has been quantised a second time. int8 and int4 are
openhearth's own formats; made from numbers that lie on a 4-bit grid already, they lose less here
than they would on a model that was never quantised. The change is against the same weights in
float32 with `transformers` {transformers}: {truth}. llama.cpp is the one in llama-cpp-python
{llama}, on the same files and windows. Computed with {isa}: without AMX, int8 and int4 multiply
activations that are rounded to 8 bits, as llama.cpp does for all of its quantised files.
"""
FORMATS_TAIL = """\
Again:

```sh
python bench/peers/install.py transformers llama.cpp --home FOLDER
python bench/peers/convert.py --home FOLDER
python bench/perplexity.py TEST.jsonl --home FOLDER --out bench/results/perplexity.json
python bench/report.py
```"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--check", action="store_true", help="compare only; status 1 where a page differs")
    parser.add_argument("--results", type=Path, default=ROOT / "bench" / "results")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs")
    options = parser.parse_args()
    pages: dict[str, str] = {}
    found = {path.stem: json.loads(path.read_text(encoding="utf-8"))
             for path in options.results.glob("*.json")}
    if "cpu" in found:
        held_back = [found[name] for name in ("cpu-avx512", "cpu-avx2") if name in found]
        pages |= performance_pages(found["cpu"], held_back, found.get("wide"))
    if found.keys() & {"learning", "sft_curve", *SERVED, "soak", "perplexity"}:
        pages |= results_pages(found)
    if "on_policy" in found and (tune := options.docs / "tune.md").exists():
        pages |= tune_page(found["on_policy"], tune.read_text(encoding="utf-8"))
    stale = [name for name, text in pages.items() if not (options.docs / name).exists()
             or (options.docs / name).read_text(encoding="utf-8") != text]
    for name in stale:
        if options.check:
            print(f"{options.docs / name} is not what the results say", file=sys.stderr)
        else:
            (options.docs / name).write_text(pages[name], encoding="utf-8")
    return int(options.check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
