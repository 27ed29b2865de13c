"""The content of a report as plain values: ``reading`` makes the values, ``page`` renders them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from fruits.analysis.gates import Gate
from fruits.lake.approvals import Approval
from fruits.lake.publication import Publication
from fruits.run.documents import Classified, Featurized, Projected, TaskDocument
from fruits.run.state import PlannedRun
from fruits.serve.state import FittedVersion, RunOutcome


@dataclass(frozen=True)
class Picture:
    """A picture of a quarantined object: ``jpeg`` when its bytes decode, else ``note`` says what the bytes are."""

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
    """Embeddings on the first two components: ``points`` by label, a sample of ``read`` of the ``total`` rows."""

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
    """The work of a run: the documents of its tasks, in order, and the result of ``featurize``, if there was one."""

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
    """A new backbone grows beside the backbone that readers use; ``remaining`` objects lack a feature under it."""

    readers_model_id: str
    remaining: int


@dataclass(frozen=True)
class Overview:
    """What readers see now. ``publication`` is None in an empty lake, ``work`` when its run's documents are gone.

    ``classified`` tells of the publication's classifier; None without one, or when its run's documents are gone.
    ``history`` has the newest publication last. ``pin`` says who pinned readers to the publication, and why.
    ``questions`` wait for a person's approval.
    """

    lake: str
    bucket: str
    publication: Publication | None
    tables: Tables | None
    work: Work | None
    history: Sequence[PastPublication]
    classified: Classified | None = None
    pin: str | None = None
    questions: Sequence[Approval] = ()


@dataclass(frozen=True)
class RunReport:
    """A run, whatever became of it.

    ``tables`` are as the run left them, published or not; None when their snapshots have expired or the run was not
    planned. ``building`` is set when the run published rows of a new backbone, which readers do not use yet.
    ``publication`` is the run's own, ``current`` the one that readers see. ``questions`` are about what the run left
    out, ``approvals`` are those that it used.
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
    questions: Sequence[Approval] = ()
    approvals: Sequence[Approval] = ()
