import base64
import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from datetime import UTC, datetime
from html.parser import HTMLParser
from typing import Any

import pytest
from pydantic import BaseModel

from fruits.analysis.gates import Gate
from fruits.analysis.quality import ConfusedPair, Confusion
from fruits.lake.approvals import Approval
from fruits.lake.publication import Publication
from fruits.photos.ignore import Names
from fruits.photos.quarantine import Reason
from fruits.run.documents import TaskDocument, TaskName
from fruits.run.request import RunRequest
from fruits.serve.report import content_security_policy, render, render_message
from fruits.serve.report.content import (
    EmbeddingMap,
    Overview,
    PastPublication,
    Picture,
    Quarantine,
    QuarantinedObject,
    RunReport,
    Tables,
    Work,
)
from fruits.serve.report.page import OUTCOMES
from fruits.serve.state import FittedVersion
from fruits.text import inert
from tests.hostile import ACTING, HOSTILE_KEYS
from tests.runs import classified, document, featurized, planned, projected

MOMENT = datetime(2026, 11, 22, 9, 30, tzinfo=UTC)
HOSTILE = "\"'><script>alert(1)</script><img src=//evil onerror=alert(2)></svg></style>{{ 7 * 7 }}"
JPEG = b"\xff\xd8\xff"
VOID = frozenset({"meta", "link", "img", "path", "rect", "circle"})

EXAMPLES = (
    QuarantinedObject("a/1.jpg", "e", "truncated", "ends early", 2_700, MOMENT, Picture(JPEG, "JPEG, 9 x 9 pixels")),
    QuarantinedObject("a/2.jpg", "e", "truncated", "ends early", 0, MOMENT, Picture(None, "no bytes")),
    QuarantinedObject("a/3.jpg", "e", "mystery", "what?", 5, MOMENT, None),
)
TABLES = Tables(
    Quarantine({"truncated": 5, "mystery": 1}, EXAMPLES),
    FittedVersion("pca-1", "lite0-0123", 70, 2, "0.95", (0.5, 0.25), 0.2, "first fit", MOMENT),
    EmbeddingMap({"Kiwi": [(0.0, 1.0), (2.0, 3.0)], "Banana": [(1.0, 1.0)]}, read=10, total=30),
)
GATES = (
    Gate("probe", "required", True, 0.97, 0.9, "kept"),
    Gate("vectors_usable", "required", False, 3.0, 0.0, "3 with NaN"),
    Gate("drift", "warn", False, float("nan"), 0.05, "drifted"),
    Gate("unit_scale", "warn", True, None, 4.0, "none"),
)
PUBLICATION = Publication(
    sequence=3,
    snapshots={"features": 123_456_789},
    publication_id="pub-000003-abcdef",
    run_id="manual__1",
    published_at=MOMENT,
    model_id="lite0-0123",
    pca_id="pca-1",
    counts={"create": 1_234, "update": 0, "features": 1_240, "quarantine": 6},
    probe_raw=0.91,
    probe_embedded=None,
    gates=GATES,
)


def task(name: TaskName, state: str, wall_seconds: float | None, **changed: Any) -> TaskDocument[Any]:
    bare: dict[str, Any] = {"seconds": {}, "versions": {}}
    return document(name, 0, None, **{**bare, "state": state, "wall_seconds": wall_seconds, **changed})


WORK = Work(
    (
        task("plan", "succeeded", 0.1, seconds={"list": 0.1}, versions={"fruits": "0.1.0"}),
        task(
            "featurize",
            "failed",
            75.0,
            attempt=2,
            seconds={"session": 3.0},
            versions={"spark": "4.1.4"},
            error="out of memory",
        ),
        task("pca", "running", None),
    ),
    featurized(
        images=94,
        images_per_second=67.13,
        bytes=8_000_000,
        photo_seconds={"get": 0.1, "infer": 3.1},
        usd_per_million=0.454,
    ),
)
HISTORY = (
    PastPublication(replace(PUBLICATION, sequence=2, publication_id="pub-000002-abcdef"), None),
    PastPublication(PUBLICATION, 0.75),
)
CLASSIFIED = classified(
    "lda-0123456789ab",
    Confusion(
        (ConfusedPair("Kiwi", "Lime", 4, ("Test/Kiwi/7.jpg", "Test/Kiwi/9.jpg")),),
        {"Kiwi": {"Kiwi": 300, "Lime": 4}, "Lime": {"Lime": 724}},
    ),
)
OVERVIEW = Overview("file:///lake", "fruits", PUBLICATION, TABLES, WORK, HISTORY, CLASSIFIED)
REQUEST = RunRequest(
    prefix="a/",
    mode="interval",
    keys=("a/1", "a/2", "a/3", "a/4"),
    interval=(datetime(2026, 11, 20, tzinfo=UTC), datetime(2026, 11, 21, tzinfo=UTC)),
    backbone="lite0",
    weights="default",
    refit="never",
    limit=7_000,
    retry_quarantined=True,
    dry_run=True,
)
PLANNED = planned(
    "manual__1",
    request=REQUEST,
    counts={"create": 1_234, "pending": 7, "ignored": 1_004},
    other_work="readers use another backbone",
    ignored={"hidden": Names(1_004, (".DS_Store", "Kiwi/._1.jpg\u202f"))},
)
RUN = RunReport(
    lake="file:///lake",
    bucket="fruits",
    key="manual_1",
    run_id="manual__1",
    outcome="published",
    error=None,
    planned=PLANNED,
    work=WORK,
    gates=GATES,
    pca=projected(classified=CLASSIFIED),
    building=None,
    tables=TABLES,
    publication=PUBLICATION,
    current=PUBLICATION,
    history=HISTORY,
)
BARE = replace(
    RUN, planned=None, work=Work((), None), gates=(), pca=None, tables=None, publication=None, current=None, history=()
)
EMPTY = Overview("file:///lake", "fruits", None, None, None, ())


class Page(HTMLParser):
    """The elements and the text of a page; fails on elements that do not nest."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.style = ""
        self._open: list[str] = []
        self.feed(html)
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open[-1:] == ["style"]:
            self.style += data
        else:
            self.text += data

    def all(self, *tags: str) -> Iterator[dict[str, str]]:
        return (attributes for tag, attributes in self.elements if tag in tags)


def pages() -> dict[str, str]:
    runs = {outcome: replace(RUN, outcome=outcome, error="it <failed>") for outcome in OUTCOMES}
    reports = {"overview": OVERVIEW, "empty": EMPTY, "bare": BARE, **runs}
    return {**{name: render(one, MOMENT) for name, one in reports.items()}, "message": render_message("a", "b")}


@pytest.mark.parametrize("key", HOSTILE_KEYS.values(), ids=HOSTILE_KEYS)
def test_no_key_acts_on_a_page(key):
    attacked = [replace(RUN, error=key, planned=planned("manual__1", ignored={"hidden": Names(1, (key,))}))]
    for page in (*(render(report, MOMENT) for report in attacked), render_message(key, key)):
        assert not ACTING & set(page)
        assert not list(Page(page).all("script"))
        assert all(image["src"].startswith("data:image/jpeg;base64,") for image in Page(page).all("img"))
        assert "".join(inert(key).split()) in "".join(Page(page).text.split()), "it is shown as text"


def test_a_run_names_what_it_ignored_and_what_to_do():
    text = " ".join(Page(render(RUN, MOMENT)).text.split())
    assert r"1,004 ignored as hidden: .DS_Store, Kiwi/._1.jpg\u202f and 1,002 more. Hidden files and folders" in text


def hostile(value: Any) -> Any:
    """``value`` with every text in it made hostile, but for those that the software itself chose."""
    if isinstance(value, str):
        return HOSTILE
    if isinstance(value, Mapping):
        return {hostile(key) if key in ("Kiwi", "truncated") else key: hostile(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(hostile, value))
    if isinstance(value, BaseModel):
        chosen = {"task", "state", "mode", "refit", "action", "token", "calibrated_on"}
        names = [name for name in type(value).model_fields if name not in chosen]
        return value.model_copy(update={name: hostile(getattr(value, name)) for name in names})
    if is_dataclass(value) and not isinstance(value, type):
        chosen = {"outcome", "severity", "resample", "precision"}
        return replace(
            value, **{f.name: hostile(getattr(value, f.name)) for f in fields(value) if f.name not in chosen}
        )
    return value


@pytest.mark.parametrize("name", pages())
def test_a_page_needs_nothing_but_itself(name):
    html = pages()[name]
    page = Page(html)
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "iframe", "object", "embed", "form", "base", "audio", "video", "image", "use"}
    assert [one["href"] for one in page.all("link", "a")] == ["data:,", "#content"]
    assert all(one["src"].startswith("data:image/jpeg;base64,") for one in page.all("img"))
    for _, attributes in page.elements:
        assert not [one for one in attributes if one == "style" or one.startswith("on")], "the policy would refuse it"
    assert "url(" not in page.style
    assert "@import" not in page.style
    assert not re.search(r"https?://", html)


def test_the_policy_allows_the_page_its_own_styles_only():
    html = render(OVERVIEW)
    page = Page(html)
    (policy,) = [one["content"] for one in page.all("meta") if one.get("http-equiv") == "Content-Security-Policy"]
    assert policy == content_security_policy()
    digest = base64.b64encode(hashlib.sha256(page.style.encode()).digest()).decode()
    assert policy.split("; ") == [
        "default-src 'none'", f"style-src 'sha256-{digest}'", "img-src data:", "base-uri 'none'", "form-action 'none'"
    ]  # fmt: skip
    assert html.index("Content-Security-Policy") < html.index("<style>")


@pytest.mark.parametrize(
    "report", [OVERVIEW, RUN, replace(RUN, outcome="failed", error="x")], ids=["now", "run", "failed"]
)
def test_whatever_keys_labels_reasons_and_errors_hold_is_shown_as_text(report):
    harmless, attacked = Page(render(report, MOMENT)), Page(render(hostile(report), MOMENT))
    kinds = {(tag, *sorted(attributes)) for tag, attributes in harmless.elements}
    assert {(tag, *sorted(attributes)) for tag, attributes in attacked.elements} <= kinds
    assert attacked.style == harmless.style
    assert HOSTILE[:40] in attacked.text
    assert "49" not in attacked.text.replace("2026", ""), "text is not a template"
    assert "script" not in {tag for tag, _ in attacked.elements}


def test_a_message_is_text():
    assert HOSTILE in Page(render_message(HOSTILE, HOSTILE)).text


@pytest.mark.parametrize("name", pages())
def test_a_page_is_for_everybody(name):
    page = Page(pages()[name])
    (html,) = page.all("html")
    assert html == {"lang": "en"}
    tags = [tag for tag, _ in page.elements]
    assert tags.count("h1") == 1
    assert tags.count("caption") == tags.count("table")
    assert all(one["alt"] for one in page.all("img"))
    charts = [one for one in page.all("svg") if one.get("aria-hidden") != "true"]
    assert all(one["role"] == "img" and one["aria-label"] for one in charts)
    assert all(one["scope"] in ("col", "row") for one in page.all("th"))
    assert all(one["tabindex"] == "0" for one in page.all("div") if one.get("class") == "wide"), "scrolls by keyboard"
    names = [one["id"] for _, one in page.elements if "id" in one]
    assert len(names) == len(set(names))
    assert {one["aria-labelledby"] for _, one in page.elements if "aria-labelledby" in one} <= set(names)


def test_an_overview_shows_everything():
    text = " ".join(Page(render(OVERVIEW, MOMENT)).text.split())
    for shown in (
        "pub-000003-abcdef", "manual__1", "lite0-0123", "pca-1", "1,240", "123456789", "fruits 0.1.0, spark 4.1.4",
        "Variance explained 75.0%", "67.1 img/s", "get 0.1, infer 3.1.",
        "the cores for a million photos cost 0.45 USD", "2 of 4 passed", "✗ failed", "! warning",
        "3 with NaN",
        Reason.TRUNCATED.description, "The newest 2 of 5 are shown.", "a/1.jpg", "no bytes",
        "3 of 30 photos, chosen by a hash of their key among the first 10", "1 min 15 s", "out of memory",
        "the last 2", "Read 2026-11-22 09:30:00 UTC",
    ):  # fmt: skip
        assert shown in text, shown


def test_a_run_shows_what_it_was_asked_and_what_is_left():
    text = " ".join(Page(render(RUN, MOMENT)).text.split())
    for shown in (
        "7 pending", "readers use another backbone", "a/1, a/2, a/3 …", "4 named",
        "2026-11-20T00:00:00+00:00 to 2026-11-21T00:00:00+00:00",
        "7,000 photos",
        "fitted anew: first fit", "never",
    ):  # fmt: skip
        assert shown in text, shown


@pytest.mark.parametrize("report", [OVERVIEW, RUN], ids=["now", "run"])
def test_a_report_shows_the_classifier_and_what_it_confuses(report):
    text = " ".join(Page(render(report, MOMENT)).text.split())
    for shown in (
        "99.5% of 1,028 photos right", "lda-0123456789ab, 3 labels, fitted on 70 photos", "1,020 held-out photos",
        "95.1% have the right label, of 95.0% promised; 1.04 labels each",
        "Kiwi Lime 4 Test/Kiwi/7.jpg, Test/Kiwi/9.jpg", "Label 1 2 1 Kiwi 300 4 2 Lime 724",
    ):  # fmt: skip
        assert shown in text, shown


def test_a_classifier_that_confuses_nothing_or_whose_quality_nobody_knows_says_so():
    def text(**changed: Any) -> str:
        pca = projected(classified=CLASSIFIED.model_copy(update=changed))
        return " ".join(Page(render(replace(RUN, pca=pca), MOMENT)).text.split())

    assert "No photo is taken for another label." in text(confusion=Confusion((), {}))
    unknown = text(quality=None, confusion=None)
    assert "Classifier too few photos to tell its quality" in unknown
    assert "Confusion table" not in unknown
    assert "Classifier" not in Page(render(replace(RUN, pca=projected()), MOMENT)).text


def test_what_waits_for_an_approval_and_who_approved_is_shown():
    question = Approval("deletions", "ab" * 32, "Remove 480 rows?", 480, "run", MOMENT, {"reasons": ["a bound"]})
    decided = replace(question, question="Switch?").approved("ada", "it is better", "Airflow")
    run = replace(RUN, questions=(question,), approvals=(decided,))
    overview = replace(OVERVIEW, publication=replace(PUBLICATION, approvals=(decided,)), questions=[question])
    for report in (run, overview):
        text = " ".join(Page(render(report, MOMENT)).text.split())
        for shown in (
            "Remove 480 rows?",
            "a bound",
            f"fruits approve {question.short}",
            "Approved by ada",
            "it is better",
        ):
            assert shown in text, shown


def test_what_a_run_was_not_asked_is_not_shown():
    plain = planned("manual__1", request=RunRequest(prefix=""))
    assert "None" not in Page(render(replace(RUN, planned=plain), MOMENT)).text


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_each_outcome_is_explained(outcome):
    text = Page(render(replace(BARE, outcome=outcome, error="because of this"), MOMENT)).text
    assert OUTCOMES[outcome][1] in text
    assert OUTCOMES[outcome][2] in text
    assert "because of this" in text
    assert "Nothing was ever published in this lake." in text


def test_pictures_are_in_the_page():
    (picture,) = Page(render(OVERVIEW)).all("img")
    assert base64.b64decode(picture["src"].partition(",")[2]) == JPEG
    assert picture["alt"] == "The photo a/1.jpg"


def test_the_same_report_is_the_same_page():
    assert render(OVERVIEW, MOMENT) == render(OVERVIEW, MOMENT)


def test_very_long_texts_do_not_make_a_very_long_page():
    long = replace(EXAMPLES[0], key="k" * 100_000, detail="d" * 100_000)
    points = {f"{'l' * 10_000}{number}": [(0.0, 1.0)] for number in range(100)}
    tables = replace(TABLES, quarantine=Quarantine({"truncated": 1}, [long]), map=EmbeddingMap(points, 100, 100))
    html = render(replace(OVERVIEW, tables=tables), MOMENT)
    assert len(html) < 100_000
    assert "64 other labels" in html
