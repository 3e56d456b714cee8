"""Draws a run as an SVG of bars: what a request and a chunk cost each system in CPU time."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from bench.results import Results

WIDTH_PX: Final = 760
LABEL_PX: Final = 190
VALUE_PX: Final = 90
BAR_PX: Final = 18
ROW_PX: Final = 24
HEAD_PX: Final = 34
COLOURS: Final = {"tierfall": "#2563eb", "ferro": "#b45309", "litellm": "#6b7280"}
OTHER_COLOUR: Final = "#9ca3af"
OFF_SCALE: Final = 4
"""A bar longer than that many times the next one is cut, and says so."""


def draw(results: Results) -> str:
    """Two charts, one under the other; systems in the order in which they were started."""
    charts = (
        ("CPU µs a unary request", "unary "),
        ("CPU µs a chunk, streams of 50 tokens a second", "stream "),
    )
    parts: list[str] = []
    top = 0
    for title, kind in charts:
        bars = _bars(results, kind)
        parts.append(f'<text x="0" y="{top + 20}" font-weight="bold">{escape(title)}</text>')
        top += HEAD_PX
        scale = (WIDTH_PX - LABEL_PX - VALUE_PX) / _longest([value for _, _, value in bars])
        for case, system, value in bars:
            parts.append(_bar(top, f"{case.removeprefix(kind)}, {system}", system, value, scale))
            top += ROW_PX
        top += ROW_PX
    style = 'font-family="sans-serif" font-size="13"'
    box = f'width="{WIDTH_PX}" height="{top}" viewBox="0 0 {WIDTH_PX} {top}"'
    ground = f'<rect width="{WIDTH_PX}" height="{top}" fill="white"/>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {box} {style}>{ground}{"".join(parts)}</svg>\n'


def _bars(results: Results, kind: str) -> list[tuple[str, str, float]]:
    ours = [each for each in results.measured if each.group == "systems" and each.case.startswith(kind)]
    pairs = dict.fromkeys(
        (each.case, each.system) for each in sorted(ours, key=lambda each: each.round) if each.cpu_s
    )
    found = [(*pair, results.median("systems", *pair, lambda each: each.cpu_us)) for pair in pairs]
    cases = list(dict.fromkeys(each.case for each in ours))
    known = [(case, system, value) for case, system, value in found if value is not None]
    return sorted(known, key=lambda bar: cases.index(bar[0]))


def _longest(values: list[float]) -> float:
    """The longest bar, unless it would make all others invisible."""
    if not values:
        return 1.0
    ordered = sorted(values, reverse=True)
    for longest, following in zip(ordered, [*ordered[1:], 0.0], strict=True):
        if longest <= OFF_SCALE * following:
            return longest
    return ordered[-1]


def _bar(top: int, label: str, system: str, value: float, scale: float) -> str:
    room = WIDTH_PX - LABEL_PX - VALUE_PX
    length = min(room, value * scale)
    more = " →" if value * scale > room + 1 else ""
    colour = COLOURS.get(system, OTHER_COLOUR)
    middle = top + BAR_PX - 4
    return (
        f'<text x="{LABEL_PX - 8}" y="{middle}" text-anchor="end">{escape(label)}</text>'
        f'<rect x="{LABEL_PX}" y="{top}" width="{length:.0f}" height="{BAR_PX}" fill="{colour}"/>'
        f'<text x="{LABEL_PX + length + 6:.0f}" y="{middle}">{value:,.0f}{more}</text>'
    )
