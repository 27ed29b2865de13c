"""What a report shows, as plain values: ``reading`` makes them, ``page`` renders them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from fruits.analysis.gates import Gate
from fruits.lake.approvals import Approval
from fruits.lake.publication import Publication
from fruits.run.documents import Featurized, Projected, TaskDocument
from fruits.run.state import PlannedRun
from fruits.serve.state import FittedVersion, RunOutcome


@dataclass(frozen=True)
class Picture:
    """A quarantined object as it can be shown: ``jpeg`` where its bytes decode, else ``note`` says what they are."""

    jpeg: bytes | None
    note: str


@dataclass(frozen=True)
class QuarantinedObject:
    """An example of an object in quarantine; ``size`` in bytes."""

    key: str
    etag: str
    reason: str
    detail: str
    size: int
    last_modified: datetime
    picture: Picture | None = None


@dataclass(frozen=True)
class Quarantine:
    """The objects in quarantine by reason, and examples of them."""

    counts: Mapping[str, int]
    examples: Sequence[QuarantinedObject]

    @property
    def total(self) -> int:
        """Objects in quarantine."""
        return sum(self.counts.values())


@dataclass(frozen=True)
class EmbeddingMap:
    """Embeddings on the first two components: ``points`` by label, a sample of the ``read`` of ``total`` rows."""

    points: Mapping[str, Sequence[tuple[float, float]]]
    read: int
    total: int

    @property
    def shown(self) -> int:
        """Points on the map."""
        return sum(map(len, self.points.values()))


@dataclass(frozen=True)
class Tables:
    """What the tables hold at one moment, for one backbone and PCA version."""

    quarantine: Quarantine
    pca: FittedVersion | None
    map: EmbeddingMap | None


@dataclass(frozen=True)
class Work:
    """How a run went: the documents of its tasks, in order, and what it featurized, if anything."""

    tasks: Sequence[TaskDocument[Any]]
    featurized: Featurized | None

    @property
    def versions(self) -> dict[str, str]:
        """Versions of the software, over all tasks."""
        return {name: version for task in self.tasks for name, version in task.versions.items()}

    @property
    def wall_seconds(self) -> float:
        """Seconds of all tasks together."""
        return sum(task.wall_seconds or 0.0 for task in self.tasks)


@dataclass(frozen=True)
class PastPublication:
    """A publication in the history, with its PCA's explained variance (None when that version has expired)."""

    publication: Publication
    explained_variance: float | None


@dataclass(frozen=True)
class Building:
    """A backbone is built beside the one that readers use, until none of the ``remaining`` objects awaits it."""

    readers_model_id: str
    remaining: int


@dataclass(frozen=True)
class Overview:
    """What readers see now. ``publication`` is None in an empty lake, ``work`` when its run's documents are gone.

    ``history`` has the newest publication last. ``pin`` says who pinned readers to the publication, and why.
    ``questions`` wait for a person's approval.
    """

    lake: str
    bucket: str
    publication: Publication | None
    tables: Tables | None
    work: Work | None
    history: Sequence[PastPublication]
    pin: str | None = None
    questions: Sequence[Approval] = ()


@dataclass(frozen=True)
class RunReport:
    """A run, whatever became of it.

    ``tables`` are as the run left them, published or not; None when their snapshots have expired or the run was not
    planned. ``building`` is set when it published without a change for readers, as it built a backbone
    beside theirs. ``publication`` is the run's own, ``current`` the one that readers see.
    """

    lake: str
    bucket: str
    key: str
    run_id: str
    outcome: RunOutcome
    error: str | None
    planned: PlannedRun | None
    work: Work
    gates: Sequence[Gate]
    pca: Projected | None
    building: Building | None
    tables: Tables | None
    publication: Publication | None
    current: Publication | None
    history: Sequence[PastPublication]
