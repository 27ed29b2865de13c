"""The table, the JSON and the picture of benchmarks: what passes, and what a figure of several runs says."""

import json
import os
import subprocess
import sys

import pytest

from benchmarks import parts
from benchmarks.figure import figure, line_of, median, share_of_goal
from benchmarks.speed import __main__ as speed
from benchmarks.speed import daft_way
from benchmarks.speed.bare import steady
from benchmarks.speed.picture import picture
from benchmarks.speed.scale import QUICK, Scale
from benchmarks.speed.usage import DRIVER, JVM, WORKERS, Usage, watched


@pytest.mark.parametrize(
    ("value", "goal", "passes"),
    [
        (0.9, {"least": 0.9}, True),
        (0.89, {"least": 0.9}, False),
        (1.3, {"most": 1.3}, True),
        (1.31, {"most": 1.3}, False),
        (1e9, {}, True),
    ],
)
def test_a_figure_passes_at_its_goal_and_beyond_it(value, goal, passes):
    found = figure("a", value, "x", **goal)
    assert found == {
        "name": "a",
        "value": value,
        "unit": "x",
        "goal": next(iter(goal.values()), None),
        "pass": passes,
        "spread": None,
    }


def test_the_figure_of_several_runs_is_their_median_with_their_range():
    found = median("a", [1.0, 4.0, 2.0], "x", least=3.0)
    assert (found["value"], found["spread"], found["pass"]) == (2.0, 1.5, False)


@pytest.mark.parametrize(
    ("found", "share"),
    [
        (figure("a", 0.45, least=0.9), 0.5),
        (figure("a", 1.8, least=0.9), 2.0),
        (figure("a", 2.6, most=1.3), 0.5),
        (figure("a", 0.65, most=1.3), 2.0),
        (figure("a", 1.3, most=1.3), 1.0),
        (figure("a", 1.3), None),
    ],
)
def test_a_bar_reaches_the_goal_when_its_figure_passes(found, share):
    assert share_of_goal(found) == pytest.approx(share)


def test_the_table_says_which_goals_are_missed():
    assert line_of(median("a", [1.0, 1.0, 1.2], "x", least=2.0)).split()[-3:] == ["goal", "2:", "MISSED"]
    assert line_of(figure("a", 1.0, "x", most=2.0)).endswith("goal 2: met")
    assert "goal" not in line_of(figure("a", 1.0, "x"))


def test_a_benchmark_writes_the_figures_of_the_parts_that_are_named_and_fails_when_a_goal_is_missed(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(parts, "BUILD", tmp_path)
    monkeypatch.setattr(speed, "BUILD", tmp_path)
    monkeypatch.setattr(
        speed,
        "PARTS",
        {
            "good": lambda scale: [figure("photos", scale.many), figure("<good>", 1.0, "x", least=0.9)],
            "bad": lambda scale: [figure("bad", 1.0, "x", most=0.9)],
        },
    )
    assert speed.main(["--quick", "good"]) == 0
    figures = json.loads((tmp_path / "bench.json").read_text())
    assert [(one["name"], one["value"], one["pass"]) for one in figures] == [
        ("photos", QUICK["many"], True),
        ("<good>", 1.0, True),
    ]
    assert speed.main([]) == 1
    assert "MISSED" in capsys.readouterr().out
    environment = json.loads((tmp_path / "environment.json").read_text())
    assert {"cores", "packages", "load_before", "load_after"} <= environment.keys()
    drawn = (tmp_path / "bench.svg").read_text()
    assert "&lt;good&gt;" in drawn
    assert "bad" in drawn
    with pytest.raises(SystemExit):
        speed.main(["no-such-part"])


def test_a_part_that_fails_loses_no_figure_and_stops_no_other_part(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(parts, "BUILD", tmp_path)
    there_at = []

    def failing():
        yield figure("one of two", 1.0)
        there_at.append(json.loads((tmp_path / "some.json").read_text()))
        raise RuntimeError("no server")

    figures = parts.measured({"bad": failing, "good": lambda: [figure("good", 2.0)]}, "some")
    assert [(one["name"], one["pass"]) for one in figures] == [
        ("one of two", True),
        ("bad: measured to its end", False),
        ("good", True),
    ]
    assert json.loads((tmp_path / "some.json").read_text()) == figures
    assert there_at == [figures[:1]], "a figure is written as soon as it is there"
    printed = capsys.readouterr()
    assert "no server" in printed.err
    assert "bad: measured to its end" in printed.out


def test_the_picture_has_a_bar_for_each_goal():
    figures = [figure("a", 1.0, least=2.0), figure("b", 1.0), figure("c", 1.0, most=2.0)]
    assert picture(figures).count("<rect") == 1 + 2


def test_what_a_job_costs_at_any_size_is_no_part_of_a_photo():
    few = Usage(30.0, {JVM: 20.0, WORKERS: 10.0, DRIVER: 5.0})
    many = Usage(80.0, {JVM: 30.0, WORKERS: 90.0, DRIVER: 5.0})
    core, wall = steady(few, many, 10_000)
    assert core == pytest.approx({JVM: 0.001, WORKERS: 0.008, DRIVER: 0.0})
    assert wall == pytest.approx(0.005)


def test_daft_is_measured_by_the_photos_of_its_larger_run_beyond_its_smaller_one():
    scale = Scale(few=1_000, many=7_000)
    usages = {1_000: Usage(10.0, {DRIVER: 4.0}), 7_000: Usage(40.0, {DRIVER: 34.0})}
    found = daft_way.steady(usages.__getitem__, os.getpid(), scale)
    assert (found.rate, found.core) == pytest.approx((200.0, 0.005))
    assert found.server < 0.001


def test_the_core_seconds_of_a_program_are_those_of_all_its_processes():
    burn = "import time\nwhile time.process_time() < 0.7: pass\n"
    program = f"import subprocess, sys\nchild = subprocess.Popen([sys.executable, '-c', {burn!r}])\n{burn}child.wait()"
    process = subprocess.Popen([sys.executable, "-c", program], text=True, start_new_session=True)
    assert 0.9 < watched(process, "a program").core_seconds < 2.0


def test_a_program_that_fails_ends_the_benchmark():
    process = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"], text=True, start_new_session=True)
    with pytest.raises(RuntimeError, match="a program ended with exit code 3"):
        watched(process, "a program")


def test_every_figure_is_measured_at_least_three_times():
    assert Scale().runs >= 3
    assert Scale(**QUICK).runs >= 3
