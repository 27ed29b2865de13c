import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest

from fruits.analysis.gates import Findings, Gate, evaluate, failed, probe_is_due, wilson_interval
from fruits.analysis.quality import Quality
from fruits.settings import Settings

SETTINGS = Settings.load(lake="file:///lake", catalog_uri="sqlite:////lake/catalog.db")
GOOD = Findings(
    planned=100,
    unaccounted=(),
    expected_rows=1_000,
    rows=1_000,
    new_rows=100,
    unusable_vectors=0,
    wrong_widths=0,
    quarantined=5,
    scale_ratio=1.05,
    missing_embeddings=0,
    orthonormality_error=1e-13,
    explained_variance=0.95,
    drift=0.01,
    duplicates_across_splits=0,
    unfitted_labels=(),
    probe_raw=0.95,
    probe_embedded=0.94,
    probe_rows=200,
    classifier=Quality(1_000, accuracy=0.95, calibration_error=0.02, coverage=0.95, labels_of_set=1.1),
    set_error=0.05,
    classifier_before=Quality(1_000, accuracy=0.96, calibration_error=0.02, coverage=0.95, labels_of_set=1.1),
)
"""Findings of a run that nothing is wrong with."""

REQUIRED = {
    "manifest_accounted": {"unaccounted": ("Kiwi/1.jpg",)},
    "rows_accounted": {"rows": 999},
    "vectors_usable": {"unusable_vectors": 1},
    "vector_width": {"wrong_widths": 1},
    "embeddings_complete": {"missing_embeddings": 1},
    "components_orthonormal": {"orthonormality_error": 1e-3},
    "explained_variance": {"explained_variance": SETTINGS.min_explained_variance - 0.01},
    "quarantined_share": {"quarantined": 201},
    "probe": {"probe_embedded": 0.5},
}
WARN = {
    "drift": {"drift": SETTINGS.refit_drift + 0.01},
    "unit_scale": {"scale_ratio": 127.5},
    "labels_fitted": {"unfitted_labels": ("Durian",)},
    "duplicates_across_splits": {"duplicates_across_splits": 1},
    "classifier_accuracy": {"classifier": Quality(1_000, 0.92, 0.02, 0.95, 1.1)},
    "classifier_calibration": {"classifier": Quality(1_000, 0.96, 0.07, 0.95, 1.1)},
    "classifier_coverage": {"classifier": Quality(1_000, 0.96, 0.02, 0.93, 1.1)},
}


@pytest.mark.parametrize("name", [*REQUIRED, *WARN])
def test_the_runbook_explains_every_gate(name):
    runbook = (Path(__file__).parents[3] / "docs" / "operations.md").read_text()
    section = runbook.partition("\n## The gates\n")[2].partition("\n## ")[0]
    assert re.search(rf"^\| [^|]*`{name}`", section, re.MULTILINE)


def not_passed(findings: Findings, settings: Settings = SETTINGS) -> list[str]:
    return [gate.name for gate in evaluate(findings, settings) if not gate.passed]


def test_good_findings_pass_every_gate_and_there_are_no_others():
    gates = evaluate(GOOD, SETTINGS)
    assert not_passed(GOOD) == []
    assert {gate.name: gate.severity for gate in gates} == {
        **dict.fromkeys(REQUIRED, "required"),
        **dict.fromkeys(WARN, "warn"),
    }
    assert len(gates) == len(REQUIRED) + len(WARN)


@pytest.mark.parametrize(("name", "finding"), [*REQUIRED.items(), *WARN.items()])
def test_each_finding_fails_its_own_gate_alone(name, finding):
    assert not_passed(replace(GOOD, **finding)) == [name]


@pytest.mark.parametrize(("name", "finding"), REQUIRED.items())
def test_a_required_gate_forbids_the_publication(name, finding):
    assert [gate.name for gate in failed(evaluate(replace(GOOD, **finding), SETTINGS))] == [name]


@pytest.mark.parametrize("finding", WARN.values())
def test_a_warning_does_not(finding):
    assert failed(evaluate(replace(GOOD, **finding), SETTINGS)) == ()


@pytest.mark.parametrize(
    ("name", "finding"),
    [
        ("components_orthonormal", {"orthonormality_error": math.nan}),
        ("explained_variance", {"explained_variance": math.nan}),
        ("probe", {"probe_embedded": math.nan}),
        ("probe", {"probe_raw": math.nan}),
        ("drift", {"drift": math.nan}),
        ("unit_scale", {"scale_ratio": math.nan}),
        ("unit_scale", {"scale_ratio": math.inf}),
    ],
)
def test_what_is_not_a_number_fails(name, finding):
    assert not_passed(replace(GOOD, **finding)) == [name]


@pytest.mark.parametrize(
    "finding",
    [
        {"orthonormality_error": None},
        {"explained_variance": None},
        {"drift": None},
        {"scale_ratio": None},
        {"probe_raw": None},
        {"probe_embedded": None},
        {"probe_raw": 0.0, "probe_embedded": 0.0},
        {"rows": 0, "expected_rows": 0, "quarantined": 0},
    ],
    ids=str,
)
def test_what_does_not_apply_passes_without_a_value(finding):
    gates = evaluate(replace(GOOD, **finding), SETTINGS)
    assert [gate.name for gate in gates if not gate.passed] == []
    assert sum(gate.value is None for gate in gates) == 1


@pytest.mark.parametrize(
    ("name", "variable", "finding"),
    [
        ("explained_variance", {"min_explained_variance": 0.96}, {}),
        ("quarantined_share", {"max_quarantined_share": 0.004}, {}),
        ("probe", {"min_probe_ratio": 1.0}, {"probe_rows": 1_000}),
        ("drift", {"refit_drift": 0.005}, {}),
    ],
)
def test_a_threshold_comes_from_the_settings(name, variable, finding):
    stricter, findings = SETTINGS.model_copy(update=variable), replace(GOOD, **finding)
    assert not_passed(findings, stricter) == [name]
    (gate,) = [gate for gate in evaluate(findings, stricter) if gate.name == name]
    assert [gate.threshold] == list(variable.values())


def test_a_value_at_its_threshold_passes():
    at = {"explained_variance": 0.6, "quarantined": 200, "probe_raw": 1.0, "probe_embedded": 0.9, "drift": 0.05}
    assert not_passed(replace(GOOD, **at, scale_ratio=4.0)) == []
    assert not_passed(replace(GOOD, **at, scale_ratio=0.25)) == []


def test_a_small_increment_with_one_bad_photo_does_not_fail_the_run():
    assert not_passed(replace(GOOD, planned=1, new_rows=0, rows=1_001, expected_rows=1_001, quarantined=6)) == []


def test_too_many_rows_are_as_wrong_as_too_few():
    assert not_passed(replace(GOOD, rows=1_001)) == ["rows_accounted"]


def test_a_gate_names_what_it_found_with_a_few_examples():
    lost = [f"Kiwi/{number}.jpg" for number in range(9)]
    gate = failed(evaluate(replace(GOOD, unaccounted=lost), SETTINGS))[0]
    assert (gate.value, gate.threshold) == (9, 0)
    assert gate.detail == ("91 of 100 planned objects are where they belong: Kiwi/0.jpg, Kiwi/1.jpg, Kiwi/2.jpg ...")


def test_a_gate_survives_its_document():
    for gate in evaluate(GOOD, SETTINGS):
        assert Gate(**json.loads(json.dumps(gate.to_document()))) == gate


def test_a_probe_of_a_few_held_out_photos_warns_and_does_not_stop_the_run():
    few = replace(GOOD, probe_embedded=0.5, probe_rows=49)
    assert not_passed(few) == ["probe"]
    assert failed(evaluate(few, SETTINGS)) == ()


def gate_of(name: str, **findings: object) -> Gate:
    (gate,) = [gate for gate in evaluate(replace(GOOD, **findings), SETTINGS) if gate.name == name]
    return gate


@pytest.mark.parametrize(
    ("quarantined", "rows", "passed"),
    [
        *((1, 4, True), (2, 5, True), (3, 10, True), (2, 2, False), (8, 20, False), (30, 100, False), (25, 100, True)),
        *((200, 999, True), (220, 999, True), (230, 999, False), (200, 1_000, True), (201, 1_000, False)),
    ],
)
def test_a_quarantined_share_fails_when_its_sample_can_tell(quarantined, rows, passed):
    gate = gate_of("quarantined_share", quarantined=quarantined, rows=rows, expected_rows=rows)
    assert gate.passed is passed
    assert gate.value == quarantined / rows, "the value is the measured one"
    if quarantined / rows > SETTINGS.max_quarantined_share and rows < 1_000:
        assert ("too few objects to tell" in gate.detail) is passed
        assert "95 % interval" in gate.detail


@pytest.mark.parametrize(
    ("raw", "embedded", "held_out", "passed"),
    [
        (1.0, 14 / 19, 19, True),
        (0.95, 0.5, 4, True),
        (1.0, 0.0, 1, True),
        (0.95, 0.7, 50, False),
        (0.95, 0.5, 200, False),
        (0.95, 0.84, 200, True),
        (0.95, 0.84, 1_000, False),
        (0.95, 0.86, 1_000, True),
        (0.95, 0.5, 0, False),
    ],
)
def test_a_probe_fails_when_its_held_out_photos_can_tell(raw, embedded, held_out, passed):
    """A probe of no held-out photos was measured in an earlier run, on photos that are gone: its value decides."""
    gate = gate_of("probe", probe_raw=raw, probe_embedded=embedded, probe_rows=held_out)
    assert gate.passed is passed
    assert gate.value == pytest.approx(embedded / raw)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.2, 0.5, 0.99, 1.0])
@pytest.mark.parametrize("n", [1, 4, 19, 200])
def test_an_interval_ends_where_the_score_test_does(share, n):
    """Both ends solve the score equation |p - bound| = z sqrt(bound (1 - bound) / n): Wilson's definition."""
    low, high = wilson_interval(share, n)
    assert 0 <= low <= share <= high <= 1
    for bound in (low, high):
        if 0 < bound < 1:
            assert abs(share - bound) == pytest.approx(1.96 * math.sqrt(bound * (1 - bound) / n), abs=1e-9)


@pytest.mark.parametrize(
    ("scored", "held_out", "due"),
    [
        (None, 0, False),
        (None, 1, True),
        (0, 0, False),
        (0, 2, True),
        (30, 59, False),
        (30, 60, True),
        (1_000, 9_999, False),
    ],
)
def test_a_probe_is_measured_again_while_it_was_scored_on_few_photos(scored, held_out, due):
    assert probe_is_due(scored, held_out) is due


@pytest.mark.parametrize(
    ("scored", "held_out", "due"),
    [
        (800, 4_000, False),  # 20,000 photos of 100,000: the sample has as many as before
        (800, 9_000, True),
        (0, 5, False),  # one in the sample, maybe
        (0, 10, False),
        (1, 20, False),  # four in the sample, by chance only one
        (5, 100, False),
        (5, 150, True),
    ],
)
def test_a_probe_on_a_sample_is_measured_again_when_the_sample_has_more_held_out_photos(scored, held_out, due):
    assert probe_is_due(scored, held_out, sampled=0.2) is due


def test_a_probe_that_was_scored_on_few_photos_stays_a_warning_however_many_there_are_by_now():
    """The gate knows the photos that the accuracy was measured on, and not those of today."""
    (gate,) = [
        gate for gate in evaluate(replace(GOOD, probe_embedded=0.1, probe_rows=30), SETTINGS) if gate.name == "probe"
    ]
    assert (gate.severity, gate.passed) == ("warn", False)


@pytest.mark.parametrize("name", ["classifier_accuracy", "classifier_calibration", "classifier_coverage"])
@pytest.mark.parametrize(
    "classifier",
    [None, Quality(100, accuracy=0.93, calibration_error=0.09, coverage=0.92, labels_of_set=1.1)],
    ids=["none", "few photos"],
)
def test_a_classifier_that_few_photos_tell_of_fails_no_gate(name, classifier):
    gates = {gate.name: gate for gate in evaluate(replace(GOOD, classifier=classifier), SETTINGS)}
    assert gates[name].passed
    assert "too few" in gates[name].detail


def test_a_first_classifier_has_no_accuracy_to_be_compared_with():
    gates = {gate.name: gate for gate in evaluate(replace(GOOD, classifier_before=None), SETTINGS)}
    assert (gates["classifier_accuracy"].passed, gates["classifier_accuracy"].value) == (True, 0.95)
    assert "no accuracy before" in gates["classifier_accuracy"].detail
