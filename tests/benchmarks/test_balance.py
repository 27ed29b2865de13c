"""How evenly workers share: from Spark's event log to the slowest worker's share of the mean."""

import pytest

from benchmarks.speed.balance import Task, shares, stages_of, unevenness


def task_end(stage, index, executor, start, end, reason="Success"):
    info = {"Index": index, "Executor ID": executor, "Launch Time": start, "Finish Time": end}
    return {
        "Event": "SparkListenerTaskEnd",
        "Stage ID": stage,
        "Task End Reason": {"Reason": reason},
        "Task Info": info,
    }


def stage_end(stage, scope):
    rdds = [{"Name": "without a scope"}, {"Scope": f'{{"id":"1","name":"{scope}"}}'}]
    return {"Event": "SparkListenerStageCompleted", "Stage Info": {"Stage ID": stage, "RDD Info": rdds}}


def test_tasks_are_those_of_our_python_in_the_order_of_their_work_and_a_failed_try_is_none():
    log = [
        {"Event": "SparkListenerApplicationStart"},
        task_end(0, 0, "1", 0, 900),
        stage_end(0, "Exchange"),
        task_end(1, 1, "0", 1_000, 3_000),
        task_end(1, 0, "0", 1_000, 9_000, reason="ExceptionFailure"),
        task_end(1, 0, "1", 1_000, 2_500),
        stage_end(1, "MapInArrow"),
    ]
    assert stages_of(iter(log)) == [[("1", 1.5), ("0", 2.0)]]


def test_a_worker_has_the_seconds_of_all_its_tasks_and_an_idle_one_none():
    tasks = [Task("0", 1.0, 10), Task("1", 2.0, 30), Task("0", 2.0, 20)]
    assert shares(tasks, "seconds", workers=3) == [3.0, 2.0, 0.0]
    assert shares(tasks, "photos", workers=3) == [30, 30, 0]
    with pytest.raises(RuntimeError, match="expected 1 workers"):
        shares(tasks, "seconds", workers=1)


def test_each_chunk_waits_for_its_slowest_worker():
    assert unevenness([[2.0, 2.0], [1.0, 1.0]]) == 1.0
    assert unevenness([[3.0, 1.0], [1.0, 3.0]]) == 1.5, "evened out over the chunks, and yet half of the time is lost"
    assert unevenness([[4.0, 0.0]]) == 2.0
