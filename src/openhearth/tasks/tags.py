"""The answer inside a response: what a model said it is, told from how it got there."""

from __future__ import annotations

import re

_THINKING = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL)
_NUMBER = re.compile(r"(?<![\w.])[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?")
_OPEN, _CLOSE = "<answer>", "</answer>"

THINK = ("Think step by step. Then give the final answer, and nothing else, between <answer> and "
         "</answer>.")
DIRECT = "Give only the final answer, between <answer> and </answer>."


def without_thinking(response: str) -> str:
    """Return a response without its <think> blocks; one that never closes runs to the end."""
    if "</think>" in response and "<think>" not in response:  # the template opened the block
        return response.rpartition("</think>")[2]
    return _THINKING.sub("", response)


def tagged_answer(response: str) -> str | None:
    """Return what stands in the last complete <answer> pair outside of thinking; None without one.

    The text between the last closing tag and the opening tag before it: no tag is inside it.
    """
    text = without_thinking(response)
    end = text.rfind(_CLOSE)
    start = text.rfind(_OPEN, 0, end) if end >= 0 else -1
    return text[start + len(_OPEN):end].strip() if start >= 0 else None


def last_number(response: str) -> str | None:
    """Return the last number outside of thinking, without grouping commas; None without one.

    A minus belongs to the number where nothing but white space or a sign stands before it.
    """
    numbers = _NUMBER.findall(without_thinking(response))
    return numbers[-1].replace(",", "") if numbers else None
