"""Charts as inline SVG, small pure functions. The page's stylesheet sets colours and sizes of text.

All text goes through ``Markup.format``, which escapes it.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate

from markupsafe import Markup

COLOURS = 9
_MARKS = ("circle", "square", "triangle", "cross")
MOST_LABELS = COLOURS * len(_MARKS)  # 9 and 4 have no common divisor, so every pair comes up once
_LONGEST_LABEL = 40
_MOST_TICKS = 10

Point = tuple[float, float]


def shortened(text: str, longest: int = _LONGEST_LABEL) -> str:
    """``text``, without its end when ``text`` is too long."""
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def look(rank: int) -> tuple[int, str]:
    """Colour and mark of the label of this rank: neighbours differ in both, and ``MOST_LABELS`` pairs in either."""
    return rank % COLOURS, _MARKS[rank % len(_MARKS)]


def scatter(points: Mapping[str, Sequence[Point]], name: str, description: str) -> Markup:
    """Points by label, coloured and marked by the label's rank; labels beyond ``MOST_LABELS`` look alike."""
    width, height, margin = 720, 520, 14
    every = [point for of_label in points.values() for point in of_label]
    to_x = _scale([x for x, _ in every], margin, width - margin)
    to_y = _scale([y for _, y in every], height - margin, margin)
    groups = [
        Markup('<g class="{}"><title>{}: {}</title><path d="{}"/></g>').format(
            mark_class(rank), shortened(label), len(of_label), _path(rank, [(to_x(x), to_y(y)) for x, y in of_label])
        )
        for rank, (label, of_label) in enumerate(points.items())
    ]
    axes = Markup('<path class="axis" d="M{0} {2}H{1}M{3} {4}V{5}"/>').format(
        margin, width - margin, _number(_inside(to_y(0), margin, height - margin)),
        _number(_inside(to_x(0), margin, width - margin)), margin, height - margin,
    )  # fmt: skip
    return _svg("map", width, height, name, description, [axes, *reversed(groups)])


def legend_mark(rank: int) -> Markup:
    """The mark of a label, alone."""
    return Markup(
        '<svg class="mark" viewBox="0 0 14 14" aria-hidden="true"><g class="{}"><path d="{}"/></g></svg>'
    ).format(mark_class(rank), _path(rank, [(7.0, 7.0)]))


def mark_class(rank: int) -> str:
    """Style classes of a label's points."""
    if rank >= MOST_LABELS:
        return "other circle"
    colour, mark = look(rank)
    return f"c{colour} {mark}"


def scree(ratios: Sequence[float], name: str, description: str) -> Markup:
    """Explained variance ratio of each component as bars, and their sum so far as a line on a scale of its own."""
    width, height, left, right, top, bottom = 720, 320, 62, 62, 14, 34
    inner, floor = width - left - right, height - bottom
    highest = _round_up(max(ratios, default=0.0)) or 1.0
    step = inner / max(len(ratios), 1)
    bars = [
        Markup('<rect class="bar" x="{}" y="{}" width="{}" height="{}"><title>component {}: {}</title></rect>').format(
            _number(left + index * step + step * 0.1), _number(floor - (floor - top) * ratio / highest),
            _number(step * 0.8), _number((floor - top) * ratio / highest), index + 1, f"{ratio:.2%}",
        )
        for index, ratio in enumerate(ratios)
    ]  # fmt: skip
    sums = [
        (left + (index + 0.5) * step, floor - (floor - top) * min(total, 1.0))
        for index, total in enumerate(accumulate(ratios))
    ]
    line = Markup('<path class="line" d="{}"/>').format(_line(sums))
    grid = [
        Markup('<path class="grid" d="M{} {}H{}"/>').format(left, _number(floor - (floor - top) * share), width - right)
        + _text(left - 7, floor - (floor - top) * share + 4, _percent(highest * share), "end")
        + _text(width - right + 7, floor - (floor - top) * share + 4, _percent(share), "start")
        for share in (0.0, 0.25, 0.5, 0.75, 1.0)
    ]
    marks = [_text(left + (number - 0.5) * step, height - 8, f"{number:,}", "middle") for number in _ticks(len(ratios))]
    return _svg("scree", width, height, name, description, [*grid, *bars, line, *marks])


def sparkline(values: Sequence[float | None], name: str, description: str) -> Markup:
    """Values over time, the last one marked; gaps where a value is None."""
    width, height, margin = 220, 52, 6
    known = [value for value in values if value is not None]
    to_x = _scale([0.0, float(max(len(values) - 1, 1))], margin, width - margin)
    to_y = _scale(known, height - margin, margin)
    places = [(to_x(index), to_y(value)) for index, value in enumerate(values) if value is not None]
    last = (
        [Markup('<circle class="last" cx="{}" cy="{}" r="3.5"/>').format(*map(_number, places[-1]))] if places else []
    )
    line = Markup('<path class="line" d="{}"/>').format(_line(places))
    return _svg("spark", width, height, name, description, [line, *last])


def phase_bar(phases: Mapping[str, float], seconds: float, longest: float, name: str) -> Markup:
    """A task's seconds as a bar, as long as its share of ``longest``, divided into its phases."""
    width, height = 400, 16
    scale = width / longest if longest > 0 else 0.0
    rest = max(seconds - sum(phases.values()), 0.0)
    parts, start = [], 0.0
    for index, (phase, spent) in enumerate([*phases.items(), ("other", rest)]):
        colour = "other" if phase == "other" else f"c{index % COLOURS}"
        parts.append(
            Markup('<rect class="{}" x="{}" y="0" width="{}" height="{}"><title>{}: {:.1f} s</title></rect>').format(
                colour, _number(start * scale), _number(spent * scale), height, phase, spent
            )
        )
        start += spent
    described = ", ".join(f"{phase} {spent:.1f} s" for phase, spent in phases.items())
    return _svg("phases", width, height, name, described or "no phases", parts)


def _svg(kind: str, width: int, height: int, name: str, description: str, content: Sequence[Markup]) -> Markup:
    fitting = "none" if kind == "phases" else "xMidYMid"  # a bar is stretched, anything else keeps its proportions
    return Markup(
        '<svg class="chart {}" viewBox="0 0 {} {}" preserveAspectRatio="{}" role="img" aria-label="{}. {}">'
        "<title>{}</title>{}</svg>"
    ).format(kind, width, height, fitting, name, description, name, Markup("").join(content))


def _path(rank: int, places: Sequence[Point]) -> str:
    """One path for all points of a label. Circles and squares are lines of no length with round or square ends."""
    mark = "circle" if rank >= MOST_LABELS else look(rank)[1]
    shape = {"circle": "h0", "square": "h0", "triangle": "m0-4l4 7h-8z", "cross": "m-3-3l6 6m0-6l-6 6"}[mark]
    return "".join(f"M{_number(x)} {_number(y)}{shape}" for x, y in places)


def _line(places: Sequence[Point]) -> str:
    return "M" + "L".join(f"{_number(x)} {_number(y)}" for x, y in places) if places else ""


def _text(x: float, y: float, text: str, anchor: str) -> Markup:
    return Markup('<text x="{}" y="{}" text-anchor="{}">{}</text>').format(_number(x), _number(y), anchor, text)


def _percent(share: float) -> str:
    return f"{share * 100:.3g}%"


def _scale(values: Sequence[float], start: float, end: float) -> Callable[[float], float]:
    """Values as pixels: the least at ``start``, the largest at ``end``, values that are not finite in the middle."""
    finite = [value for value in values if math.isfinite(value)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)

    def place(value: float) -> float:
        share = (value - low) / (high - low) if math.isfinite(value) and high > low else 0.5
        return start + share * (end - start)

    return place


def _inside(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)


def _ticks(count: int) -> list[int]:
    """Numbers of components to write below the axis: the first, and at most ten round ones."""
    step = next((step for step in (1, 2, 5, 10, 20, 50, 100, 200) if count <= _MOST_TICKS * step), 500)
    return sorted({1, *range(step, count + 1, step)}) if count else []


def _round_up(value: float) -> float:
    """The next of 1, 2, 4 or 5 times a power of ten."""
    if value <= 0:
        return 0.0
    power = 10.0 ** math.floor(math.log10(value))
    return next((power * step for step in (1, 2, 4, 5, 10) if power * step >= value), 10 * power)


def _number(value: float) -> str:
    """A coordinate with no more digits than a pixel needs."""
    return f"{value:.1f}".removesuffix(".0")
