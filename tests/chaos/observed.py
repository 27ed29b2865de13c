"""A bucket, a lake, and what is true of them whatever happens: what readers find, and what no run may take away."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from pyiceberg.exceptions import NoSuchTableError

from fruits.analysis.classifier import fit_classifier
from fruits.analysis.pca import transform
from fruits.lake.approvals import Approval, digest_of, read_approvals
from fruits.lake.catalog import Lake
from fruits.lake.classifier_tables import KEPT_PHOTOS, load_classifier, load_sample, sample_of
from fruits.lake.counters import COUNTED, Counters
from fruits.lake.pca_tables import load_label_sums, load_statistics, load_versions
from fruits.lake.places import first_of
from fruits.lake.publication import Publication, publications
from fruits.lake.schemas import DATA_TABLES, TABLES, matrix
from fruits.photos.keys import KeyRules
from fruits.run.lease import current_lease
from fruits.run.manifest import DUE_ETAG
from fruits.run.state import PlannedRun
from fruits.settings import Settings
from tests.chaos.jobs import BROKEN, CARD, WIDTH, count_rows, moments_of_rows, same_numbers, sums_of_rows, vector_of
from tests.chaos.memory import MemoryCatalog

DAY = datetime(2026, 11, 20, tzinfo=UTC)
SAMPLED = ["key", "label", "split", "vector"]
VECTORS = np.random.default_rng(1).normal(size=(8, WIDTH))
Rows = Mapping[str, tuple[Any, ...]]
"""By key: ETag, label, split and vector of a feature; ETag and reason of a quarantined object."""


@dataclass(frozen=True)
class Photo:
    """An object of the bucket. The S3 server does not answer a GET of one that is ``silent``."""

    etag: str
    data: bytes
    last_modified: datetime
    size: int = 1
    silent: bool = False


@dataclass
class ObservedLake:
    """The bucket and the lake of one history, as somebody sees them who knows what was uploaded.

    Attributes:
        settings: The settings; the rules of ignored keys may change.
        memory: The catalog; None for a real one.
        folder: Where a real catalog and its lake are.
        bucket: The objects that are there, by key.
        uploads: All that was ever uploaded: ETag, and bytes.
        looked_at: How many commits there had been at the last look at the tables in memory.
        seen: Snapshots of ``publications`` that were looked at.
        last: The last two publications.
        rows: The rows of the last publication, and its sequence.
        foreign: Snapshots that another program made.
        unapproved: How many rows left without an approval, all within a day.
        waiting: Whether something waits for an approval, as the last plan found.
        base_keys: The keys that had rows when the last plan was made, where an object is silent.
        pinned: The rows that readers are pinned to; None without a pin.
    """

    settings: Settings
    memory: MemoryCatalog | None
    folder: Path
    bucket: dict[str, Photo] = field(default_factory=dict)
    uploads: dict[str, bytes] = field(default_factory=dict)
    looked_at: int = -1
    seen: set[int] = field(default_factory=set)
    last: list[Publication] = field(default_factory=list)
    rows: tuple[int, Rows] = field(default_factory=lambda: (0, {}))
    foreign: set[int | None] = field(default_factory=set)
    unapproved: int = 0
    waiting: bool = False
    base_keys: frozenset[str] = frozenset()
    pinned: Rows | None = None

    def put(self, key: str, data: bytes, day: int = 0, *, silent: bool = False) -> None:
        """Upload a photo, over the one that is there."""
        number = len(self.uploads) + 1
        moment = DAY + timedelta(days=day, seconds=number)
        self.bucket[key] = Photo(f"e{number}", data, moment, silent=silent)
        self.uploads[f"e{number}"] = data

    def state(self) -> str:
        """The tables right now, in a few words."""
        if self.memory is None:
            return "on a real catalog"
        if len(self.memory.tables) < len(TABLES):
            return "tables missing"
        if not self.last:
            return "nothing published"
        current = publications(Lake(self.settings))[-1].snapshots
        behind = sum(self.memory.tables[name].heads["main"] != at for name, at in current.items())
        return f"{behind} of {len(DATA_TABLES)} main branches behind" if behind else "settled"

    def look(self) -> None:
        """See that readers find whole publications, and that each ``main`` is where a publication has it."""
        if self.memory and len(self.memory.tables) == len(TABLES) and self.memory.commits != self.looked_at:
            self._look()
            self.looked_at = self.memory.commits

    def check_readers(self) -> None:
        """Readers find whole publications now; on a real catalog this is not looked at in between."""
        if self.memory:
            self.look()
        elif (self.folder / "catalog.db").exists():
            with suppress(NoSuchTableError):
                self._look()

    def _look(self) -> None:
        lake = Lake(self.settings)
        head = lake.head("publications")
        assert head is not None
        if head not in self.seen:
            self._look_at_publications(lake, head)
        if not self.last:
            return
        for name in DATA_TABLES:
            allowed = {one.snapshots[name] for one in self.last}
            if len(self.last) == 1:
                allowed.add(lake.table(name).snapshots()[0].snapshot_id)
            assert lake.head(name) in allowed | self.foreign, f"main of {name} is at no publication"

    def _look_at_publications(self, lake: Lake, head: int) -> None:
        published = publications(lake, head)
        assert [one.sequence for one in published] == list(range(1, len(published) + 1)), "a sequence with gaps"
        for one in published[-1:]:
            rows = whole_rows(lake, one)
            sequence, before = self.rows
            if one.made_by_run and one.sequence == sequence + 1:  # on a real catalog some are not looked at
                self._check_what_left(one, before, rows)
            self.rows = one.sequence, rows
        self.seen.add(head)
        self.last = published[-2:]

    def _check_what_left(self, publication: Publication, before: Rows, after: Rows) -> None:
        """Rows left by an approval of exactly these rows, or they were few."""
        left = {key: row[0] for key, row in before.items() if key not in after}
        named = [set(approval.details["first_keys"]) for approval in publication.approvals]
        approved = set().union(*named)
        for approval, keys in zip(publication.approvals, named, strict=True):
            assert keys <= left.keys(), "rows whose removal was approved are still there"
            assert approval.digest == digest_of_rows({key: left[key] for key in keys}), "other rows were approved"
        number, rows = self.unapproved + len(left), self.unapproved + len(before)
        if number > max(self.settings.few_deletions, self.settings.max_deleted_share * rows):
            assert approved == left.keys(), f"{number} of {rows} rows left, and {len(approved)} were approved"
        self.unapproved += len(left.keys() - approved)
        assert self.pinned is None, "a run published under a pin"

    def note_plan(self, planned: PlannedRun) -> None:
        """Note what a plan found to wait for, and which rows there were before the run."""
        self.waiting = bool(planned.undecided)
        if any(photo.silent for photo in self.bucket.values()):
            lake, at = Lake(self.settings), planned.base.snapshots
            rows = (lake.read(name, at[name], ("key",)) for name in ("features", "quarantine"))
            self.base_keys = frozenset(key for table in rows for key in table["key"].to_pylist())

    def check_after_a_sweep(self) -> None:
        """Readers find what one run over the bucket makes, or what they are pinned to."""
        if self.pinned is None:
            self.check_equals_a_full_run()
        else:
            self.check_readers()
            assert self.rows[1] == self.pinned, "readers left the publication that they are pinned to"

    def check_after_events(self, keys: Sequence[str]) -> None:
        """Readers find the photos that events named as they are in the bucket, unless a photo could not be read."""
        if any(photo.silent for photo in self.bucket.values()):
            return
        self.check_readers()
        full = self.of_a_full_run(key_rules(self.settings.ignore))
        found = self.rows[1]
        assert {key: found.get(key) for key in keys if key in full} == {key: full[key] for key in keys if key in full}

    def check_equals_a_full_run(self) -> None:
        """Readers find what one run over the bucket as it is makes, but for what is pending.

        An object that is silent keeps the row that it had. Rows of objects that are gone stay while their removal waits
        for an approval, and then the question names exactly these rows.
        """
        lake = Lake(self.settings)
        publication = publications(lake)[-1]
        self._look()
        assert {name: lake.head(name) for name in DATA_TABLES} == dict(publication.snapshots), "a main lags behind"
        rules, found = key_rules(self.settings.ignore), self.rows[1]
        full = self.of_a_full_run(rules)
        read = (key for key in full if rules.judge(key)[2] is None)
        silent = {key for key in read if self.bucket[key].silent}
        assert {key: row for key, row in found.items() if key in full and key not in silent} == {
            key: row for key, row in full.items() if key not in silent
        }
        assert silent & found.keys() == silent & self.base_keys, "an object that is pending was lost, or made up"
        for key in silent & found.keys():
            # The row that a rebuild kept does not say of which upload it is.
            etags = self.uploads if found[key][0] == DUE_ETAG else [found[key][0]]
            uploads = [self.row_of(key, etag, rules)[1:] for etag in etags]
            assert found[key][1:] in uploads, "an object that is pending was quarantined"
        self._check_what_waits({key: row[0] for key, row in found.items() if key not in full})
        assert current_lease(self.settings) is None, "the lease was not released"

    def _check_what_waits(self, gone: Mapping[str, str]) -> None:
        """Exactly the rows of objects that are gone wait for an approval, or for the run that uses the approval."""
        questions = self.questions()
        assert {one.digest for one in questions} == ({digest_of_rows(gone)} if gone else set()), (
            f"{sorted(gone)} are gone, and {[one.question for one in questions]} is asked"
        )

    def questions(self) -> Sequence[Approval]:
        """What is asked about deletions, and not used yet."""
        return [one for one in read_approvals(self.settings) if one.kind == "deletions"]

    def of_a_full_run(self, rules: KeyRules) -> dict[str, tuple[Any, ...]]:
        """What one run over the bucket makes of each object."""
        ours = ((key, photo) for key, photo in self.bucket.items() if rules.ignore.rule_of(key) is None)
        return {key: self.row_of(key, photo.etag, rules) for key, photo in ours}

    def row_of(self, key: str, etag: str, rules: KeyRules) -> tuple[Any, ...]:
        """What a run makes of an upload."""
        label, split, rejection = rules.judge(key)
        reason = rejection or ("corrupt" if self.uploads[etag] == BROKEN else None)
        return (etag, reason) if reason else (etag, label, split, tuple(map(float, vector_of(self.uploads[etag]))))


@cache
def chaos_settings() -> Settings:
    """Settings under which few deletions are many, and two photos a chunk."""
    bounds = {"max_deleted_share": 0.3, "few_deletions": 2, "max_quarantined_share": 1}
    settings = Settings.load(lake="file:///nowhere", catalog_uri="sqlite:////nowhere", **bounds)
    return settings.model_copy(update={"chunk_photos": 2})  # fewer than people may set


@cache
def key_rules(ignore: tuple[str, ...]) -> KeyRules:
    """The rules for keys under a FRUITS_IGNORE; the other settings never change."""
    return KeyRules.of(chaos_settings().model_copy(update={"ignore": ignore}))


def digest_of_rows(rows: Mapping[str, str]) -> str:
    """The digest of the question whether rows shall leave; ETags by key."""
    return digest_of("deletions", (f"{key}\0{rows[key]}" for key in sorted(rows)))


def whole_rows(lake: Lake, publication: Publication) -> Rows:
    """The rows of a publication, whose tables agree with each other: keys, ETags, embeddings, statistics."""
    tables = {name: lake.read(name, publication.snapshots[name]) for name in DATA_TABLES}
    features, embeddings = tables["features"].to_pylist(), tables["embeddings"].to_pylist()
    rows = [(row["key"], row["etag"], row["label"], row["split"], tuple(row["vector"])) for row in features]
    rows += [(row["key"], row["etag"], row["reason"]) for row in tables["quarantine"].to_pylist()]
    keys = [row[0] for row in rows]
    assert len(keys) == len(set(keys)), f"objects more than once: {[key for key in keys if keys.count(key) > 1]}"
    current = {row["key"]: row for row in embeddings if row["pca_id"] == publication.pca_id}
    assert len(current) == len([row for row in embeddings if row["pca_id"] == publication.pca_id]), "doubled"
    assert {(row["key"], row["etag"]) for row in features} == {(key, row["etag"]) for key, row in current.items()}
    versions = load_versions(lake, publication.snapshots["pca_models"], CARD.model_id)
    (version,) = [one for one in versions if one.pca_id == publication.pca_id]
    expected, _ = transform(version.pca, matrix(tables["features"]["vector"].combine_chunks()))
    found = np.array([current[row["key"]]["embedding"] for row in features])
    assert np.allclose(found, expected, atol=1e-5), "an embedding is not that of its vector"
    statistics = load_statistics(lake, publication.snapshots["pca_statistics"], CARD.model_id, WIDTH)
    anew = moments_of_rows(tables["features"])
    assert statistics.n == anew.n, "the statistics count other rows"
    assert same_numbers(statistics.mean, anew.mean), "mean"
    assert same_numbers(statistics.scatter, anew.scatter), "scatter"
    sums = load_label_sums(lake, publication.snapshots["label_statistics"], CARD.model_id)
    of_rows = sums_of_rows(tables["features"])
    assert {label: one.n for label, one in sums.items()} == {label: one.n for label, one in of_rows.items()}, "labels"
    assert all(same_numbers(one.mean, of_rows[label].mean) for label, one in sums.items()), "means by label"
    sample = load_sample(lake, publication.snapshots["calibration_sample"], CARD.model_id)
    assert sample.select(SAMPLED).equals(first_of(tables["features"], KEPT_PHOTOS).sort_by("key").select(SAMPLED)), (
        "sample"
    )
    classifier = load_classifier(lake, publication)
    expected_classifier = fit_classifier(anew, of_rows, sample_of(sample))
    assert classifier is not None
    assert publication.classifier_id == classifier.classifier_id
    assert classifier.labels == expected_classifier.labels
    assert same_numbers(classifier.probabilities(VECTORS), expected_classifier.probabilities(VECTORS)), "classifier"
    counted = publication.counted or Counters({})
    assert counted == count_rows([tables[name] for name in COUNTED]), "the counters are of other rows"
    return {row[0]: row[1:] for row in rows}
