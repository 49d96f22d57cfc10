"""A plot of horizontal bars with a logarithmic axis, as SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from xml.sax.saxutils import escape

_LABEL_WIDTH, _AXIS_WIDTH, _VALUE_WIDTH = 330, 460, 90
_ROW_HEIGHT, _BAR_HEIGHT, _TOP, _BOTTOM = 26, 16, 44, 34
_OURS, _OTHERS = "#c2410c", "#64748b"


def bars(title: str, values: Sequence[tuple[str, float]]) -> str:
    """The plot of positive values. Bars whose label starts with `tensorcask` have a color of their own."""
    low = math.floor(math.log10(min(value for _, value in values)))
    high = max(math.ceil(math.log10(max(value for _, value in values))), low + 1)
    height = _TOP + len(values) * _ROW_HEIGHT + _BOTTOM
    width = _LABEL_WIDTH + _AXIS_WIDTH + _VALUE_WIDTH
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="13">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="12" y="24" font-size="15" font-weight="bold">{escape(title)}</text>',
    ]
    parts += [_tick(power, low, high, height) for power in range(low, high + 1)]
    for row, (label, value) in enumerate(values):
        parts += _bar(label, value, _TOP + row * _ROW_HEIGHT, _x(math.log10(value), low, high))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _x(power: float, low: int, high: int) -> float:
    return _LABEL_WIDTH + _AXIS_WIDTH * (power - low) / (high - low)


def _tick(power: int, low: int, high: int, height: int) -> str:
    x, bottom = _x(power, low, high), height - _BOTTOM
    return (
        f'<line x1="{x:.1f}" y1="{_TOP - 6}" x2="{x:.1f}" y2="{bottom}" stroke="#e2e8f0"/>'
        f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle" fill="#475569">{10.0**power:,g}</text>'
    )


def _bar(label: str, value: float, y: int, end: float) -> list[str]:
    color = _OURS if label.startswith("tensorcask") else _OTHERS
    middle, width = y + _BAR_HEIGHT - 3, max(end - _LABEL_WIDTH, 1)
    return [
        f'<text x="{_LABEL_WIDTH - 8}" y="{middle}" text-anchor="end">{escape(label)}</text>',
        f'<rect x="{_LABEL_WIDTH}" y="{y}" width="{width:.1f}" height="{_BAR_HEIGHT}" fill="{color}"/>',
        f'<text x="{_LABEL_WIDTH + width + 6:.1f}" y="{middle}" fill="#334155">{value:,.3g}</text>',
    ]
