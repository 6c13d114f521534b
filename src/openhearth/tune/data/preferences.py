"""Rows that say which answer is liked, as pairs or one by one.

    prompt, chosen, rejected     text or messages each
    chosen, rejected             two chats; what both begin with is the prompt
    prompt, completion, label    one answer; label says whether it is liked (only where `is_paired` is False)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from openhearth.tune.data.reading import Row
from openhearth.tune.data.records import Preference, Refusal, Sample
from openhearth.tune.data.rendering import Renderer


class PreferenceRenderer:
    """Turns rows into preferences. is_paired: every row must hold a chosen and a rejected answer."""

    hint = '{"prompt": "...", "chosen": "...", "rejected": "..."}'

    def __init__(self, renderer: Renderer, *, is_paired: bool) -> None:
        self.renderer, self.is_paired = renderer, is_paired

    def render(self, row: Row) -> Preference | Refusal:
        """Return the row's preference, or why there is none."""
        fields = row.fields
        if "chosen" in fields and "rejected" in fields:
            return self._pair(row)
        if not self.is_paired and {"prompt", "completion", "label"} <= fields.keys():
            return self._judged(row)
        expected = "prompt, chosen and rejected" + (
            "" if self.is_paired else "; or prompt, completion and label")
        return Refusal(row.file, row.line,
                       f"columns {', '.join(map(str, fields)) or 'none'}; expected {expected}")

    def _pair(self, row: Row) -> Preference | Refusal:
        found = {}
        for name, fields in _split(row.fields).items():
            made = self._answer(row, fields)
            if isinstance(made, Refusal):
                return Refusal(row.file, row.line, f"{name}: {made.reason}")
            found[name] = made
        if found["chosen"].token_ids == found["rejected"].token_ids:
            return Refusal(row.file, row.line, "chosen and rejected are the same")
        if len({_prompt(sample) for sample in found.values()}) > 1:
            return Refusal(row.file, row.line, "chosen and rejected have prompts of other tokens")
        return Preference(**found)

    def _answer(self, row: Row, fields: Mapping[str, Any]) -> Sample | Refusal:
        """Return a prompt with an answer up to its last trained token; nothing depends on what follows."""
        made = self.renderer.render(Row(row.file, row.line, dict(fields)))
        if isinstance(made, Refusal):
            return made
        end = len(made.is_trained) - made.is_trained[::-1].index(True)
        return Sample(made.token_ids[:end], made.is_trained[:end], made.file, made.line)

    def _judged(self, row: Row) -> Preference | Refusal:
        label = _as_label(row.fields["label"])
        if label is None:
            return Refusal(row.file, row.line, f"`label` is `{row.fields['label']}`, expected true or false")
        made = self._answer(row, {name: row.fields[name] for name in ("prompt", "completion")})
        if isinstance(made, Refusal):
            return made
        return Preference(made, None) if label else Preference(None, made)


def _split(fields: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the columns of either answer as a prompt and a completion."""
    chosen, rejected, prompt = fields["chosen"], fields["rejected"], fields.get("prompt")
    if isinstance(chosen, list) and isinstance(rejected, list) and not isinstance(prompt, list):
        count = 0
        while count < min(len(chosen), len(rejected)) - 1 and chosen[count] == rejected[count]:
            count += 1
        prompt, chosen, rejected = chosen[:count], chosen[count:], rejected[count:]
    return {name: {"prompt": prompt, "completion": completion}
            for name, completion in (("chosen", chosen), ("rejected", rejected))}


def _as_label(value: Any) -> bool | None:
    """A JSON or Parquet truth value, or its name as CSV has it."""
    if isinstance(value, bool):
        return value
    return {"true": True, "1": True, "false": False, "0": False}.get(str(value).strip().lower())


def partners(rows: Sequence[Preference], max_tokens: int) -> list[int]:
    """Return for each row the place of the next one with another prompt whose answer fits after its own.

    Of -1: there is none. What a prompt with another's answer is worth to policy and reference estimates a
    divergence that the row itself has no part in. Source: arXiv 2402.01306, section 4.2.
    """
    found = []
    for place in range(len(rows)):
        prompt = _prompt(rows[place].sequences[0])
        found.append(-1)
        for step in range(1, min(len(rows), _TRIES)):
            other = (place + step) % len(rows)
            sample = rows[other].sequences[0]
            start = sample.is_trained.index(True)
            if _prompt(sample) != prompt and len(prompt) + len(sample.token_ids) - start <= max_tokens:
                found[-1] = other
                break
    return found


def mismatched(row: Preference, other: Preference) -> Sample:
    """Return a row's prompt with the answer of another."""
    own, sample = row.sequences[0], other.sequences[0]
    prompt, start = _prompt(own), sample.is_trained.index(True)
    return Sample((*prompt, *sample.token_ids[start:]),
                  (*[False] * len(prompt), *sample.is_trained[start:]), own.file, own.line)


def _prompt(sample: Sample) -> tuple[int, ...]:
    return sample.token_ids[:sample.is_trained.index(True)]


_TRIES = 64
"""Rows looked at for another prompt: neighbours often share one."""
