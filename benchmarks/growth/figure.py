"""A figure of a benchmark."""

from typing import Any

Figure = dict[str, Any]


def figure(name: str, value: float, unit: str = "", *, most: float | None = None, least: float | None = None) -> Figure:
    """A figure: name, value, unit, goal, and whether the value passes: at ``most`` or at ``least`` the goal."""
    passed = (most is None or value <= most) and (least is None or value >= least)
    return {
        "name": name,
        "value": round(value, 4),
        "unit": unit,
        "goal": least if most is None else most,
        "pass": passed,
    }
