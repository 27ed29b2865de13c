"""A figure of a benchmark: a name, a value, a unit, a goal, whether the value passes, and its spread."""

import statistics
from collections.abc import Sequence
from typing import Any

Figure = dict[str, Any]


def figure(
    name: str,
    value: float,
    unit: str = "",
    *,
    most: float | None = None,
    least: float | None = None,
    spread: float | None = None,
) -> Figure:
    """A figure that passes at ``most`` or at ``least`` the goal; without a goal it is there to compare.

    ``spread`` is the range of all runs as a share of the value; None for a figure of one run.
    """
    passed = (most is None or value <= most) and (least is None or value >= least)
    return {
        "name": name,
        "value": round(value, 4),
        "unit": unit,
        "goal": least if most is None else most,
        "pass": passed,
        "spread": None if spread is None else round(spread, 4),
    }


def median(
    name: str, values: Sequence[float], unit: str = "", *, most: float | None = None, least: float | None = None
) -> Figure:
    """The figure of several runs: their median, and how far they lie apart."""
    value = statistics.median(values)
    spread = (max(values) - min(values)) / abs(value) if value else 0.0
    return figure(name, value, unit, most=most, least=least, spread=spread)


def line_of(figure: Figure) -> str:
    """A figure as a line of the table."""
    goal = "" if figure["goal"] is None else f"goal {figure['goal']:g}: {'met' if figure['pass'] else 'MISSED'}"
    spread = "" if figure["spread"] is None else f"±{figure['spread'] / 2:.0%}"
    digits = 2 if figure["value"] >= 10 else 3  # noqa: PLR2004 -- three or more are enough
    return f"  {figure['name']:<78} {figure['value']:>10,.{digits}f} {figure['unit']:<6} {spread:>5}  {goal}".rstrip()


def share_of_goal(figure: Figure) -> float | None:
    """How much of its goal a figure reaches: at least 1 when it passes; None without a goal, or with 0 in its place."""
    value, goal = figure["value"], figure["goal"]
    if not value or not goal:
        return None
    upwards = value == goal or (value > goal) == figure["pass"]
    return float(value / goal if upwards else goal / value)
