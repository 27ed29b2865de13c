"""The whole pass over what is published: do bucket, tables, statistics and counters agree?

The gates of a run look at the run's changes. This looks at everything, in constant memory, without a JVM, and changes
nothing. ``repair_of`` says which run mends the differences.
"""

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, astuple, dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from fruits.analysis.classifier import Classifier, Sample, fit_classifier
from fruits.analysis.labels import LabelSums, merge_sums, sums_of
from fruits.analysis.moments import Moments, merge, moments_of
from fruits.backbones.stage import read_card
from fruits.errors import GateError
from fruits.lake.approvals import read_approvals
from fruits.lake.catalog import Lake
from fruits.lake.classifier_tables import (
    SAMPLE_PHOTOS,
    SAMPLED,
    load_classifier,
    load_sample,
    sample_of,
)
from fruits.lake.counters import COUNTED, Counters, Kind, live_rows
from fruits.lake.pca_tables import load_label_sums, load_statistics
from fruits.lake.places import first_of, places
from fruits.lake.publication import Publication, publications, readable, readers_base
from fruits.lake.reader import current_publication
from fruits.lake.schemas import CALIBRATION_SAMPLE, TableName, matrix
from fruits.photos.entry import Action
from fruits.photos.keys import FIT_SPLIT, KeyRules
from fruits.run.documents import read_document
from fruits.run.events import KeptEvents
from fruits.run.joining import joined
from fruits.run.request import resolve_request
from fruits.run.state import run_key
from fruits.settings import Settings
from fruits.steps.plan import reconcile

log = logging.getLogger("fruits")

TOLERANCE = 1e-9
"""Largest relative difference of statistics that were summed in another order."""

MOST_KEYS = 1_000
"""Most keys that a check names, and that a run of single keys repairs."""

_CLOSE = 1e-4  # of a classifier that was fitted on another machine, whose products are rounded otherwise
_FIGURE = 0.02  # of a quality: a photo between two labels may get the other one
_CLOCKS_DIFFER = timedelta(minutes=1)
_MOST_HASHES = 8_000_000  # of one table in memory at once: 64 MB. More rows take more passes

Hashes = NDArray[np.int64]
Means = Literal["run", "keys", "refit", "person"]
"""What mends a difference: any run, a rebuild of its keys, a refit, or a person alone."""


@dataclass(frozen=True)
class Check:
    """What a check found.

    Attributes:
        name: The check.
        found: The finding in words.
        differences: How many there are; None when there was nothing to compare with.
        examples: The first differences: object keys, or names of tables, labels and publications.
        means: What mends them.
    """

    name: str
    found: str
    differences: int | None = 0
    examples: tuple[str, ...] = ()
    means: Means = "run"

    @property
    def state(self) -> str:
        """``ok``, ``differs`` or ``unknown``."""
        return "unknown" if self.differences is None else "differs" if self.differences else "ok"

    def to_document(self) -> dict[str, Any]:
        """As JSON types."""
        return {**asdict(self), "examples": list(self.examples), "state": self.state}


@dataclass(frozen=True)
class Verified:
    """The rows of a publication, as its readers find them."""

    settings: Settings
    lake: Lake
    publication: Publication

    @property
    def model_id(self) -> str:
        """The backbone."""
        return str(self.publication.model_id)

    def batches(self, name: TableName, *columns: str, **equal: str) -> Iterator[pa.RecordBatch]:
        """Columns of a table's rows, those where other columns have these values."""
        snapshot = self.publication.snapshots[name]
        return self.lake.batches(name, snapshot, columns, **equal)  # type: ignore[arg-type]  # of columns

    def rows(self, name: TableName) -> int:
        """How many rows a table has, of all backbones; about so many while files have deleted rows."""
        return live_rows(self.lake.table(name), self.publication.snapshots[name]) or 0

    def keyed(self, name: TableName, *columns: str) -> Iterator[pa.RecordBatch]:
        """Columns of the publication's rows of a table: of its backbone, or of its PCA version."""
        if name == "embeddings":
            return self.batches(name, *columns, pca_id=str(self.publication.pca_id))
        return self.batches(name, *columns, model_id=self.model_id)


def verify(settings: Settings, lake: Lake) -> tuple[Check, ...]:
    """Check everything that is published.

    Raises:
        FruitsError: when nothing is published yet, a snapshot is gone, or the bucket cannot be listed.
    """
    verified = Verified(settings, lake, current_publication(lake))
    return (
        check_publications(verified),
        check_bucket(verified),
        check_keys(verified),
        check_embeddings(verified),
        *check_features(verified),
        check_counters(verified),
    )


def verify_or_fail(settings: Settings, lake: Lake) -> None:
    """Check everything that is published, and log it.

    Raises:
        GateError: when there is a difference; names the checks and what to do.
    """
    checks = verify(settings, lake)
    for check in checks:
        log.log(logging.WARNING if check.differences else logging.INFO, "verify %s: %s", check.name, check.found)
    wrong = [f"{check.name}: {check.found}" for check in checks if check.differences]
    if wrong:
        raise GateError(
            f"what is published has differences: {'; '.join(wrong)}. `fruits verify` names them, and "
            "`fruits verify --repair` starts the run that mends them"
        )


def repair_of(checks: Iterable[Check]) -> dict[str, Any] | None:
    """The params of the run that mends the differences; None when there is none, or no run can."""
    wrong = [check for check in checks if check.differences and check.means != "person"]
    if not wrong:
        return None
    params: dict[str, Any] = {"refit": "always"} if any(check.means == "refit" for check in wrong) else {}
    of_keys = [check for check in wrong if check.means == "keys"]
    if not of_keys:
        return params
    keys = sorted({key for check in of_keys for key in check.examples})
    all_named = sum(check.differences or 0 for check in of_keys) <= MOST_KEYS
    return {**params, "mode": "rebuild", **({"keys": keys} if all_named else {})}


def check_publications(verified: Verified) -> Check:
    """Whether all snapshots within the retention exist, and the tables are where the publication has them."""
    lake, current = verified.lake, verified.publication
    oldest = datetime.now(UTC) - timedelta(days=verified.settings.retention_days)
    young = [one for one in publications(lake) if one.published_at and one.published_at > oldest]
    there = {one.sequence for one in readable(lake, young)}
    gone = [str(one.publication_id) for one in young if one.sequence not in there]
    moved = [name for name, at in current.snapshots.items() if lake.head(name) != at]
    if not gone and not moved:
        return Check("publications", f"the snapshots of {len(young):,} publications exist")
    found = f"{len(gone):,} of {len(young):,} publications lack a snapshot"
    if moved:
        found += f"; main of {', '.join(moved)} is not where {current.publication_id} has it: the next run moves it"
    return Check(
        "publications", found, len(gone) + len(moved), (*gone[:MOST_KEYS], *moved), "person" if gone else "run"
    )


def check_bucket(verified: Verified) -> Check:
    """Whether the tables have each object of the bucket under its ETag, and no others."""
    settings, lake = verified.settings, verified.lake
    request = resolve_request({"dry_run": True}, settings)
    base, card = readers_base(lake), read_card(settings, verified.model_id)
    published = publications(lake)
    since = _planned_at(settings, published)
    due, late = 0, 0
    examples: list[str] = []
    with joined() as pairs:
        reconciliation = reconcile(
            settings,
            request,
            pairs,
            lake,
            base,
            card,
            published=published,
            approvals=read_approvals(settings),
            events=KeptEvents(sweep=True),  # the bucket is listed, whatever a sweep's source is
        )
        for entry in reconciliation.plan.entries():
            if since is not None and entry.last_modified > since and entry.action != Action.DELETE:
                late += 1
                continue
            due += 1
            if len(examples) < MOST_KEYS:
                examples.append(entry.key)
    waiting = sum(question.number for question in reconciliation.decisions.undecided if question.kind == "deletions")
    found = f"{reconciliation.known_rows:,} rows; {due + waiting:,} objects differ from them"
    if late:
        found += f"; {late:,} arrived since the newest run was planned"
    if waiting:
        found += f"; {waiting:,} deletions wait for an approval"
    return Check("bucket", found, due + waiting, tuple(examples))


def _planned_at(settings: Settings, published: Sequence[Publication]) -> datetime | None:
    """When the newest run that published was planned: that run has not seen what arrived later.

    The moment of its publication, where its documents are gone. A minute earlier, because clocks differ.
    """
    newest = next((publication for publication in reversed(published) if publication.made_by_run), None)
    if newest is None or newest.published_at is None:
        return None
    document = read_document(settings, run_key(str(newest.run_id).partition("#")[0]), "plan")
    planned = document.done if document else None
    moment = planned.planned_at if planned and planned.run_id == newest.run_id else newest.published_at
    return moment - _CLOCKS_DIFFER


def check_keys(verified: Verified) -> Check:
    """Whether each key has one row, in one of features and quarantine."""

    def keys() -> Iterator[pa.RecordBatch]:
        for name in COUNTED:
            yield from verified.keyed(name, "key")

    total = sum(verified.rows(name) for name in COUNTED)
    repeated = 0
    examples: list[str] = []
    for part in _parts(total):
        hashes, counts = np.unique(part.of(keys(), "key"), return_counts=True)
        wrong = hashes[counts > 1]
        repeated += len(wrong)
        examples += part.named([keys], wrong, ("key",), MOST_KEYS - len(examples))
    return Check("keys", f"{repeated:,} keys have several rows", repeated, tuple(examples), "keys")


def check_embeddings(verified: Verified) -> Check:
    """Whether each feature has one embedding of its ETag, and each embedding a feature."""
    if verified.publication.pca_id is None:
        return Check("embeddings", "no PCA version is published", None)
    columns = ("key", "etag")
    streams = [partial(verified.keyed, name, *columns) for name in ("features", "embeddings")]
    missing = 0
    examples: list[str] = []
    for part in _parts(max(verified.rows("features"), verified.rows("embeddings"))):
        (features, of_features), (embeddings, of_embeddings) = (
            np.unique(part.of(stream(), *columns), return_counts=True) for stream in streams
        )
        right = np.intersect1d(features[of_features == 1], embeddings[of_embeddings == 1], assume_unique=True)
        wrong = np.setdiff1d(np.union1d(features, embeddings), right, assume_unique=True)
        missing += len(wrong)
        examples += part.named(streams, wrong, columns, MOST_KEYS - len(examples))
    found = f"{missing:,} features without exactly one embedding, or embeddings without a feature"
    return Check("embeddings", found, missing, tuple(dict.fromkeys(examples)), "keys")


def check_features(verified: Verified) -> tuple[Check, ...]:
    """Whether the vectors are numbers, and all that is taken from them is theirs; reads the vectors once.

    That is: the running statistics of the fit split, the sample that calibrates, and the classifier of both.
    """
    lake, publication, model_id = verified.lake, verified.publication, verified.model_id
    snapshots = publication.snapshots
    width = read_card(verified.settings, model_id).feature_width
    sample = _sample_of(verified)
    first, last, most = sample.slice(0, 0), max(places(sample), default=None), len(sample) + MOST_KEYS
    moments = Moments.empty(width)
    sums: LabelSums = {}
    unusable: list[str] = []
    rows = wrong_vectors = 0
    for batch in verified.keyed("features", *SAMPLED):
        rows += batch.num_rows
        chosen = first_of(pa.Table.from_batches([batch]).select(SAMPLED), most, last)
        if len(chosen):
            first = first_of(pa.concat_tables([first, chosen.cast(first.schema)]), most)
        usable = _usable(batch["vector"], width)
        wrong_vectors += int((~usable).sum())
        unusable += batch["key"].filter(pa.array(~usable)).to_pylist()[: MOST_KEYS - len(unusable)]
        fit = batch.filter(pc.and_(pc.equal(batch["split"], FIT_SPLIT), pa.array(usable)))
        if fit.num_rows:
            vectors = matrix(fit["vector"])
            moments = merge(moments, moments_of(vectors))
            sums = merge_sums([sums, sums_of(vectors, fit["label"].to_pylist())])
    vectors_found = f"{wrong_vectors:,} vectors hold NaN or infinity, are all zero, or are not {width:,} wide"
    known = load_statistics(lake, snapshots["pca_statistics"], model_id, width)
    labels = load_label_sums(lake, snapshots["label_statistics"], model_id) if "label_statistics" in snapshots else {}
    return (
        Check("vectors", vectors_found, wrong_vectors, tuple(unusable), "keys"),
        _compare_moments(known, moments),
        _compare_labels(labels, sums, known.n),
        _compare_samples(sample, first, rows, publication),
        _compare_classifiers(verified, known, labels, sample),
    )


def _sample_of(verified: Verified) -> pa.Table:
    """The sample that calibrates the publication's classifier; without rows in older lakes."""
    at = verified.publication.snapshots.get("calibration_sample")
    if at is None:
        return CALIBRATION_SAMPLE.schema.empty_table().select(SAMPLED)
    return load_sample(verified.lake, at, verified.model_id).select(SAMPLED)


def check_counters(verified: Verified) -> Check:
    """Whether the publication's counters, and Iceberg's own, are those of the tables."""
    counts: Counter[Kind] = Counter()
    for name, columns in (("features", ("model_id", "label", "split")), ("quarantine", ("model_id", "reason"))):
        for batch in verified.batches(name, *columns):  # type: ignore[arg-type]
            counts.update(Kind(**dict(zip(columns, row, strict=True))) for row in _rows(batch.select(columns)))
    there, carried = Counters(counts), verified.publication.counted
    wrong: list[str] = []
    of_iceberg = [
        f"Iceberg counts {verified.rows(name):,} rows of {name}, there are {there.total(name):,}"
        for name in COUNTED
        if verified.rows(name) != there.total(name)
    ]
    if carried is None:
        found = "; ".join(of_iceberg) or "the publication carries none"
        return Check("counters", found, len(of_iceberg) or None, tuple(of_iceberg), "person")
    for kind in sorted({*there.rows, *carried.rows}, key=str):
        named, counted = carried.rows.get(kind, 0), there.rows.get(kind, 0)
        if named != counted:
            what = f"quarantined as {kind.reason}" if kind.reason else f"of label {kind.label!r}, split {kind.split}"
            wrong.append(f"{counted:,} rows {what} under {kind.model_id}, the counters have {named:,}")
    means: Means = "refit" if wrong else "person"  # no run changes what Iceberg counts of the files that there are
    wrong = [*of_iceberg, *wrong]
    found = f"{sum(counts.values()):,} rows of {len(counts):,} kinds; {len(wrong):,} counters differ"
    return Check("counters", found, len(wrong), tuple(wrong[:MOST_KEYS]), means)


def _compare_moments(known: Moments, rows: Moments) -> Check:
    mean = _relative(known.mean, rows.mean)
    scatter = _relative(known.scatter, rows.scatter)
    found = f"{rows.n:,} rows of the fit split; mean and scatter differ by {mean:.1e} and {scatter:.1e}"
    if known.n != rows.n:
        found = f"they are of {known.n:,} rows, and the fit split has {rows.n:,}"
    wrong = known.n != rows.n or max(mean, scatter) > TOLERANCE
    return Check("statistics", found, int(wrong), ("pca_statistics",) if wrong else (), "refit")


def _compare_labels(known: LabelSums, rows: LabelSums, fitted: int) -> Check:
    if not known and fitted:
        return Check("label statistics", "none yet; the next refit makes them", None)
    wrong = [
        label
        for label in sorted({*known, *rows})
        if label not in known
        or label not in rows
        or known[label].n != rows[label].n
        or _relative(known[label].total, rows[label].total) > TOLERANCE
    ]
    found = f"{len(rows):,} labels; the statistics of {len(wrong):,} are not those of their rows"
    return Check("label statistics", found, len(wrong), tuple(wrong[:MOST_KEYS]), "refit")


def _compare_samples(sample: pa.Table, first: pa.Table, rows: int, publication: Publication) -> Check:
    """Whether the sample has enough of ``rows`` photos: the ``first`` of all up to its last place, as they are."""
    name = "calibration sample"
    if not len(sample) and publication.classifier_id is None:
        return Check(name, "none yet; the next run that changes photos makes one", None)
    there, expected = _contents(sample), _contents(first)
    wrong = sorted(key for key in {*there, *expected} if there.get(key) != expected.get(key))
    missing = max(min(rows, SAMPLE_PHOTOS) - len(sample), 0)
    found = f"{len(sample):,} photos; {len(wrong):,} are not the first of features, or not as features has them"
    if missing:
        found += f"; there are {missing:,} too few"
    examples = wrong[:MOST_KEYS] or (["calibration_sample"] if missing else [])
    return Check(name, found, max(len(wrong), missing), tuple(examples), "refit")


def _contents(rows: pa.Table) -> dict[str, list[Any]]:
    """Label, split and the vector's bytes by key."""
    columns = (rows[name].to_pylist() for name in SAMPLED[:-1])
    vectors = (vector.values.to_numpy(zero_copy_only=False).tobytes() for vector in rows["vector"])
    return {key: values for key, *values in zip(*columns, vectors, strict=True)}


def _compare_classifiers(verified: Verified, moments: Moments, sums: LabelSums, sample: pa.Table) -> Check:
    """Whether the publication's classifier is the one that its own statistics and sample make."""
    name, publication = "classifier", verified.publication
    classifier_id, rules = publication.classifier_id, KeyRules.of(verified.settings)
    if classifier_id is None:
        found = f"the publication has none, of {moments.n:,} photos of the fit split"
        return Check(name, found, None if moments.n else 0)
    if publication.rules not in (None, rules.fingerprint):
        return Check(name, "FRUITS_KEY_PATTERN or other rules of keys changed since the publication", None)
    published = load_classifier(verified.lake, publication)
    if published is None:
        return Check(name, f"{classifier_id} is not in classifiers", 1, (classifier_id,), "refit")
    try:
        rows = sample_of(first_of(sample, SAMPLE_PHOTOS).sort_by("key"), rules.pattern)
        anew = fit_classifier(moments, sums, rows, error=published.calibration.error)
    except ValueError as error:
        return Check(name, f"{classifier_id} cannot be fitted anew: {error}", 1, (classifier_id,), "refit")
    wrong = [what for what, same in _comparisons(published, anew, rows) if not same]
    if published.classifier_id != classifier_id:
        wrong.append("identity")
    found = f"{classifier_id} of {len(published.labels):,} labels is the one of statistics and sample"
    if wrong:
        found = f"{classifier_id} is not the one of statistics and sample: {', '.join(wrong)}"
    return Check(name, found, int(bool(wrong)), (classifier_id,) if wrong else (), "refit")


def _comparisons(one: Classifier, other: Classifier, sample: Sample) -> Iterator[tuple[str, bool]]:
    """The parts of two classifiers, and whether they are the same up to the rounding of another machine."""
    counts = (one.discriminant.counts.tolist(), other.discriminant.counts.tolist())
    same_labels = one.labels == other.labels and counts[0] == counts[1]
    yield "labels", same_labels
    if not same_labels:
        return
    scores = (classifier.discriminant.scores(sample.vectors) for classifier in (one, other))
    differences = [of_labels - of_labels.mean(axis=1, keepdims=True) for of_labels in scores]
    yield "scores", _relative(*differences) <= _CLOSE
    mine, theirs = one.calibration, other.calibration
    same_photos = (one.calibrated_on, mine.n) == (other.calibrated_on, theirs.n)
    same_temperature = math.isclose(mine.temperature, theirs.temperature, rel_tol=_CLOSE)
    yield (
        "calibration",
        same_photos and same_temperature and bool(np.allclose(mine.thresholds, theirs.thresholds, atol=_CLOSE)),
    )
    figures, anew = (astuple(classifier.quality) if classifier.quality else () for classifier in (one, other))
    yield "quality", len(figures) == len(anew) and bool(np.allclose(figures, anew, rtol=0, atol=_FIGURE))


def _relative(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    scale = float(np.linalg.norm(other))
    return float(np.linalg.norm(one - other)) / (scale or 1.0)


def _usable(vectors: pa.ListArray, width: int) -> NDArray[np.bool_]:
    """Whether each vector has ``width`` finite numbers that are not all zero; shape ``(n,)``."""
    right = np.asarray(pc.equal(pc.list_value_length(vectors), width))
    usable = right.copy()
    if right.any():
        numbers = vectors.filter(pa.array(right)).flatten().to_numpy(zero_copy_only=False)
        squares = np.square(numbers.reshape(-1, width), dtype=np.float64).sum(axis=1)
        usable[right] = np.isfinite(squares) & (squares > 0)
    return usable


@dataclass(frozen=True)
class _Part:
    """The rows whose hash is ``number`` modulo ``parts``: few enough to hold their hashes in memory."""

    number: int
    parts: int

    def of(self, batches: Iterable[pa.RecordBatch], *columns: str) -> Hashes:
        """The hashes of the part's rows."""
        found = [self._mine(_hashes(batch, columns)) for batch in batches]
        return np.concatenate(found) if found else np.zeros(0, np.int64)

    def named(
        self,
        streams: Sequence[Callable[[], Iterator[pa.RecordBatch]]],
        wrong: Hashes,
        columns: Sequence[str],
        most: int,
    ) -> list[str]:
        """The keys of at most ``most`` rows that have a ``wrong`` hash; reads rows only when there are some."""
        names: dict[str, None] = {}
        if not len(wrong) or most <= 0:
            return []
        for stream in streams:
            for batch in stream():
                hit = np.isin(_hashes(batch, columns), wrong)
                names.update(dict.fromkeys(batch["key"].filter(pa.array(hit)).to_pylist()))
                if len(names) >= most:
                    return list(names)[:most]
        return list(names)

    def _mine(self, hashes: Hashes) -> Hashes:
        return hashes if self.parts == 1 else hashes[hashes % self.parts == self.number]


def _parts(rows: int) -> Iterator[_Part]:
    parts = max(1, math.ceil(rows / _MOST_HASHES))
    return (_Part(number, parts) for number in range(parts))


def _hashes(batch: pa.RecordBatch, columns: Sequence[str]) -> Hashes:
    """A number for each row, of 64 bits: two rows of 100 million share one with a probability of 0.0003."""
    return np.fromiter(map(hash, _rows(batch.select(columns))), np.int64, batch.num_rows)


def _rows(batch: pa.RecordBatch) -> Iterator[tuple[Any, ...]]:
    return zip(*(column.to_pylist() for column in batch.columns), strict=True)
