"""A run as one HTML page: curves as SVG in the page itself, nothing fetched from anywhere."""

from __future__ import annotations

import html
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from openhearth.runs.rollouts import SampledRollout

_WIDTH, _HEIGHT, _MARGIN = 640, 180, 44
_MAX_POINTS = 600
_MAX_TEXT = 2000
_RELOAD = ("<script>setInterval(() => { if (!document.querySelector('details[open]')) location.reload(); },"
           " 10000)</script>")
_TELLING = ("reward", "pass_rate", "loss")
"""Curves that a chain's page shows of each stage, where the stage has them."""
_STYLE = ("body{font:15px/1.5 system-ui,sans-serif;max-width:46rem;margin:2rem auto;padding:0 1rem}"
          "svg{width:100%;height:auto}path{fill:none;stroke:#b5521b;stroke-width:1.5}"
          "text{font:11px system-ui,sans-serif;fill:#666}line{stroke:#ccc}"
          "td,th{text-align:left;vertical-align:top;padding:.1rem 1rem .1rem 0;font-size:13px}"
          "td:nth-child(3){white-space:pre-wrap}"
          "pre{white-space:pre-wrap;font-size:12px;background:#f6f3ef;padding:1rem}")


@dataclass(frozen=True)
class StageRecord:
    """What a chain's page says of a stage. Example: ``StageRecord("1-sft", "sft", 40, [], False)``."""

    name: str
    method: str
    num_steps: int
    metrics: Sequence[Mapping[str, Any]]
    is_finished: bool


def render_page(name: str, config: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]],
                receipt: Mapping[str, Any] | None, rollouts: Sequence[SampledRollout] = ()) -> str:
    """Return the page of one run.

    metrics: records with `step` and numbers; each number's name gets a curve over the steps. rollouts: to
    browse, by step and problem. The page of a run that goes on loads itself again every 10 seconds, unless
    the reader has opened a step.
    """
    curves = [name for row in metrics[:1] for name, value in row.items()
              if name != "step" and isinstance(value, int | float)]
    parts = [f"<p>{len(metrics)} steps, {'finished' if receipt else 'not finished'}</p>"]
    parts += [_curve(curve, metrics) for curve in curves]
    return _page(name, [*parts, *_browse(rollouts), *_records(config, receipt)], is_live=receipt is None)


def render_chain_page(name: str, config: Mapping[str, Any], stages: Sequence[StageRecord],
                      receipt: Mapping[str, Any] | None) -> str:
    """Return the page of a chain: its stages with the curves they are about, and links to their pages."""
    num_finished = sum(stage.is_finished for stage in stages)
    parts = [f"<p>{num_finished} of {len(stages)} stages finished</p>"]
    for stage in stages:
        title = html.escape(f"{stage.name}: {stage.method}")
        state = "finished" if stage.is_finished else "not finished" if stage.metrics else "not begun"
        link = f'<a href="stages/{html.escape(stage.name)}/index.html">all of it</a>' if stage.metrics else ""
        steps = f"{len(stage.metrics)} of {stage.num_steps} steps, {state}"
        parts.append(f"<h2>{title}</h2><p>{steps} {link}</p>")
        parts += [_curve(curve, stage.metrics) for curve in _TELLING
                  if any(curve in row for row in stage.metrics[:1])]
    return _page(name, [*parts, *_records(config, receipt)], is_live=receipt is None)


def _page(name: str, parts: Sequence[str], *, is_live: bool) -> str:
    return (f"<!doctype html><html lang=en><meta charset=utf-8>"
            f'<meta name=viewport content="width=device-width"><title>{html.escape(name)}</title>'
            f"<style>{_STYLE}</style><h1>{html.escape(name)}</h1>{''.join(parts)}"
            f"{_RELOAD if is_live else ''}</html>\n")


def _browse(rollouts: Sequence[SampledRollout]) -> list[str]:
    """A step opens to its problems, each with what the model answered and how it was judged."""
    parts = ["<h2>rollouts</h2>"] if rollouts else []
    for step, of_step in itertools.groupby(rollouts, lambda one: one.step):
        inner, num_passed, count = [], 0, 0
        for _, group in itertools.groupby(of_step, lambda one: one.problem):
            answers = list(group)
            num_passed += sum(one.verdict == "correct" for one in answers)
            count += len(answers)
            rows = "".join(
                f"<tr><td>{'' if one.reward is None else f'{one.reward:g}'}<td>{html.escape(one.verdict)}"
                f"<td>{html.escape(_cut(one.text))}<td>{html.escape(_cut(one.reason))}" for one in answers)
            inner.append(f"<p>{html.escape(_cut(answers[0].prompt))}</p><table>"
                         f"<tr><th>reward<th>verdict<th>answer<th>reason{rows}</table>")
        parts.append(f"<details><summary>step {step}: {num_passed} of {count} right</summary>"
                     f"{''.join(inner)}</details>")
    return parts


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_TEXT else f"{text[:_MAX_TEXT]} ... ({len(text)} characters)"


def _records(config: Mapping[str, Any], receipt: Mapping[str, Any] | None) -> list[str]:
    parts = []
    for title, record in (("configuration", config), ("receipt", receipt)):
        if record:
            text = json.dumps(record, indent=1, ensure_ascii=False)
            parts.append(f"<h2>{title}</h2><pre>{html.escape(text)}</pre>")
    return parts


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _curve(title: str, metrics: Sequence[Mapping[str, Any]]) -> str:
    points = [(row["step"], row[title]) for row in metrics if _is_number(row.get(title))]
    if not points:
        return ""
    stride = -(-len(points) // _MAX_POINTS)
    shown = [*points[:-1:stride], points[-1]]
    (first, last), low, high = (shown[0][0], shown[-1][0]), *_range([value for _, value in shown])
    def x_of(step: float) -> float:
        return _MARGIN + (_WIDTH - _MARGIN) * (step - first) / max(last - first, 1)
    def y_of(value: float) -> float:
        return 8 + (_HEIGHT - 30) * (high - value) / (high - low)
    line = "M" + "L".join(f"{x_of(step):.1f},{y_of(value):.1f}" for step, value in shown)
    marks = "".join(f'<text x="0" y="{y_of(value) + 4:.0f}">{value:.4g}</text>'
                    f'<line x1="{_MARGIN}" x2="{_WIDTH}" y1="{y_of(value):.0f}" y2="{y_of(value):.0f}"/>'
                    for value in (low, high))
    steps = (f'<text x="{_MARGIN}" y="{_HEIGHT - 4}">{first:g}</text>'
             f'<text x="{_WIDTH}" y="{_HEIGHT - 4}" text-anchor="end">{last:g}</text>')
    return (f'<h2>{html.escape(title)}</h2><svg viewBox="0 0 {_WIDTH} {_HEIGHT}">{marks}{steps}'
            f'<path d="{line}"/></svg>')


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = 0.5 + abs(low)
    return (low, high) if high > low else (low - room, high + room)
