"""The figures that have a goal as a bar chart in SVG: how much of its goal each figure reaches."""

from collections.abc import Sequence

from markupsafe import Markup

from benchmarks.figure import Figure, share_of_goal

_WIDTH, _NAMES, _ROW, _GOAL = 1_000, 560, 24, 720
_LONGEST = _WIDTH - _NAMES - 90  # the rest is for the value
_MET, _MISSED = "#2a7f4f", "#c0392b"


def picture(figures: Sequence[Figure]) -> str:
    """A bar of each figure that has a goal; the line is the goal."""
    bars = [(figure, share) for figure in figures if (share := share_of_goal(figure)) is not None]
    height = _ROW * (len(bars) + 2)
    return Markup(
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {} {}" font-family="sans-serif" font-size="12">'
        '<rect width="100%" height="100%" fill="white"/>{}<path d="M{} 0V{}" stroke="black"/>'
        '<text x="{}" y="{}" text-anchor="middle">goal</text></svg>\n'
    ).format(
        _WIDTH, height, Markup("").join(_bar(row, *bar) for row, bar in enumerate(bars)),
        _GOAL, height - _ROW, _GOAL, height - _ROW / 3,
    )  # fmt: skip


def _bar(row: int, figure: Figure, share: float) -> Markup:
    length = max(0.0, min(_LONGEST, share * (_GOAL - _NAMES)))
    top = _ROW * row
    return Markup(
        '<text x="{}" y="{}" text-anchor="end">{}</text><rect x="{}" y="{}" width="{}" height="{}" fill="{}"/>'
        '<text x="{}" y="{}">{}</text>'
    ).format(
        _NAMES - 8, top + 17, figure["name"], _NAMES, top + 4, f"{length:.1f}", _ROW - 8,
        _MET if figure["pass"] else _MISSED, f"{_NAMES + length + 6:.1f}", top + 17,
        f"{figure['value']:,.4g} {figure['unit']}",
    )  # fmt: skip
