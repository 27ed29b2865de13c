import re
from itertools import pairwise
from xml.etree import ElementTree as ET

import pytest

from fruits.serve.report import charts

HOSTILE = "</title><script>alert(1)</script>\"'&"


def parsed(svg: str) -> ET.Element:
    return ET.fromstring(svg)  # noqa: S314 -- our own


def numbers(element: ET.Element, name: str) -> float:
    return float(element.attrib[name])


def test_every_point_is_drawn_once_in_the_group_of_its_label():
    points = {"Kiwi": [(0.0, 0.0), (1.0, 1.0)], "Banana": [(0.5, 0.5)]}
    groups = {group[0].text: group[1].attrib["d"].count("M") for group in parsed(charts.scatter(points, "n", "d"))[2:]}
    assert groups == {"Kiwi: 2": 2, "Banana: 1": 1}


def test_points_lie_where_their_values_say():
    svg = parsed(charts.scatter({"a": [(0.0, 0.0), (10.0, 5.0), (5.0, 5.0)]}, "n", "d"))
    places = [tuple(map(float, place)) for place in re.findall(r"M([\d.]+) ([\d.]+)", svg[2][1].attrib["d"])]
    (x0, y0), (x1, y1), (x2, y2) = places
    assert x0 < x2 < x1
    assert x2 - x0 == pytest.approx(x1 - x2, abs=0.2)
    assert y1 == y2 < y0, "larger values are higher up"


def test_labels_can_be_told_apart_by_colour_and_by_mark():
    looks = [charts.look(rank) for rank in range(charts.MOST_LABELS)]
    assert len(set(looks)) == charts.MOST_LABELS
    for one, other in pairwise(looks):
        assert one[0] != other[0]
        assert one[1] != other[1]
    assert charts.mark_class(charts.MOST_LABELS) == charts.mark_class(charts.MOST_LABELS + 7) == "other circle"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_value_that_is_no_number_does_not_break_a_chart(value):
    for svg in (
        charts.scatter({"a": [(value, 1.0), (1.0, value), (2.0, 3.0)]}, "n", "d"),
        charts.sparkline([value, 1.0, 2.0], "n", "d"),
    ):
        assert parsed(svg) is not None
        assert "nan" not in svg
        assert "inf" not in svg


def test_bars_are_as_high_as_their_ratios_and_the_line_ends_at_their_sum():
    svg = parsed(charts.scree([0.4, 0.2, 0.1], "n", "d"))
    bars = [bar for bar in svg if bar.attrib.get("class") == "bar"]
    heights = [numbers(bar, "height") for bar in bars]
    assert heights == pytest.approx([heights[0], heights[0] / 2, heights[0] / 4], abs=0.1)
    assert heights[0] == pytest.approx(numbers(bars[0], "height"))
    floor = numbers(bars[0], "y") + heights[0]
    (line,) = [path for path in svg if path.attrib.get("class") == "line"]
    last = float(line.attrib["d"].rpartition(" ")[2])
    top = min(
        float(re.search(r" ([\d.]+)H", path.attrib["d"])[1]) for path in svg if path.attrib.get("class") == "grid"
    )
    assert (floor - last) / (floor - top) == pytest.approx(0.7, abs=0.01)
    assert [bar[0].text for bar in bars] == ["component 1: 40.00%", "component 2: 20.00%", "component 3: 10.00%"]


@pytest.mark.parametrize("count", [0, 1, 3, 9, 12, 160, 1_280, 5_000])
def test_few_components_are_numbered_below_a_scree_plot(count):
    ticks = charts._ticks(count)
    assert len(ticks) <= 12
    assert ticks[:1] == [1][:count]
    assert all(1 <= tick <= count for tick in ticks)
    parsed(charts.scree([1 / max(count, 1)] * count, "n", "d"))


@pytest.mark.parametrize("values", [[], [None], [1.0], [None, 2.0, None], [3.0, 3.0]])
def test_a_sparkline_of_little(values):
    svg = parsed(charts.sparkline(values, "n", "d"))
    known = sum(value is not None for value in values)
    assert sum(one.tag == "circle" for one in svg) == min(known, 1)


def test_phases_are_as_wide_as_they_took_and_what_is_left_is_there_too():
    svg = parsed(charts.phase_bar({"session": 2.0, "write": 1.0}, 4.0, longest=8.0, name="n"))
    assert [numbers(bar, "width") for bar in svg[1:]] == [100.0, 50.0, 50.0]
    assert [numbers(bar, "x") for bar in svg[1:]] == [0.0, 100.0, 150.0]
    assert [bar[0].text for bar in svg[1:]] == ["session: 2.0 s", "write: 1.0 s", "other: 1.0 s"]


def test_charts_say_what_they_show_and_text_stays_text():
    for svg in (
        charts.scatter({HOSTILE: [(0.0, 1.0)]}, HOSTILE, HOSTILE),
        charts.scree([0.5], HOSTILE, HOSTILE),
        charts.sparkline([1.0, 2.0], HOSTILE, HOSTILE),
        charts.phase_bar({HOSTILE: 1.0}, 2.0, 2.0, HOSTILE),
    ):
        root = parsed(svg)
        assert root.attrib["role"] == "img"
        assert HOSTILE in root.attrib["aria-label"]
        assert root[0].tag == "title"
        assert {element.tag for element in root.iter()} <= {"svg", "title", "g", "path", "rect", "text", "circle"}


def test_a_long_label_is_shortened():
    assert charts.shortened("x" * 500) == "x" * 39 + "…"
    assert charts.shortened("Kiwi") == "Kiwi"
