"""The ratios as bars, in an SVG that is readable on a light and on a dark page.

The scale is logarithmic. The dashed line is 1 ×, where both sides are equal. A tick marks the required ratio.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from html import escape

from benchmarks.report import Figure, Result

WIDTH, LABELS, VALUES = 860, 250, 70  # pixels: of the whole, of the names at the left, of the ratios at the right
ROW, HEAD, GAP = 20, 26, 14  # pixels: of a bar, of a title, between groups
STYLE = """
text { font: 12px system-ui, sans-serif; fill: #24292f }
.title { font-weight: 600 }
.bar { fill: #3578c4 }
.missed { fill: #cf4a3c }
.even { stroke: #8c959f; stroke-dasharray: 3 3 }
.required { stroke: #24292f; stroke-width: 2 }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 }
  .bar { fill: #58a6ff }
  .missed { fill: #ff7b72 }
  .even { stroke: #7d8590 }
  .required { stroke: #e6edf3 }
}
"""


def svg(results: Iterable[Result]) -> str:
    """Return an SVG of the results with a plot title, each with its own scale."""
    parts: list[str] = []
    top = GAP
    for result in results:
        figures = [figure for figure in result.figures if figure.unit == "×" and figure.ratio > 0]
        if result.plot is not None and figures:
            parts += _group(result.plot, figures, top)
            top += HEAD + ROW * len(figures) + GAP
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top}" width="{WIDTH}" height="{top}" '
            'role="img" aria-label="Ratios of the benchmarks">',
            f"<style>{STYLE}</style>",
            *parts,
            "</svg>\n",
        ]
    )


def _group(title: str, figures: list[Figure], top: int) -> list[str]:
    bounds = [bound for figure in figures if (bound := figure.at_least or figure.at_most)]
    values = [1.0, *bounds, *(figure.ratio for figure in figures)]
    low, high = math.log10(min(values) / 1.2), math.log10(max(values) * 1.2)

    def place(ratio: float) -> float:
        return LABELS + (WIDTH - LABELS - VALUES) * (math.log10(ratio) - low) / (high - low)

    even, first = place(1.0), top + HEAD
    parts = [f'<text class="title" x="8" y="{top + 14}">{escape(title)}</text>']
    for number, figure in enumerate(figures):
        parts += _bar(figure, first + ROW * number, even, place)
    end = first + ROW * len(figures)
    return [*parts, f'<line class="even" x1="{even:.1f}" x2="{even:.1f}" y1="{first - 4}" y2="{end}"/>']


def _bar(figure: Figure, top: int, even: float, place: Callable[[float], float]) -> list[str]:
    end = place(figure.ratio)
    middle = top + ROW // 2 + 1
    kind = "missed" if figure.missed else "bar"
    left, width = min(even, end), max(1.0, abs(end - even))
    parts = [
        f'<text x="{LABELS - 8}" y="{middle + 1}" text-anchor="end">{escape(figure.what)}</text>',
        f'<rect class="{kind}" x="{left:.1f}" y="{top}" width="{width:.1f}" height="{ROW - 6}">'
        f"<title>{escape(f'{figure.what}: {figure.ours} to {figure.other}')}</title></rect>",
        f'<text x="{max(even, end) + 6:.1f}" y="{middle + 1}">{figure.ratio:,.2f} ×</text>',
    ]
    bound = figure.at_least or figure.at_most
    if bound:
        at = place(bound)
        parts.append(f'<line class="required" x1="{at:.1f}" x2="{at:.1f}" y1="{top - 2}" y2="{top + ROW - 4}"/>')
    return parts
