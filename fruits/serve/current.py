"""The engine of the current publication, as the lake moves on: a new publication replaces the whole engine at once."""

import logging
import threading
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from fruits.errors import FruitsError
from fruits.lake.catalog import Lake
from fruits.lake.reader import current_publication, explain_lake_errors, open_read_only
from fruits.serve.identify import Engine
from fruits.serve.neighbours import EXACT_ROWS, build, open_neighbours
from fruits.settings import Settings

log = logging.getLogger("fruits")

_MOST_SECONDS = 600
"""Seconds between two looks while the current publication cannot be loaded, after some tries."""

_STARTING = "the current publication is being loaded; ask again in some seconds"


@dataclass(frozen=True)
class Loaded:
    """What the last look at the lake found.

    Attributes:
        engine: What answers; None before the first publication was loaded.
        loaded_at: When the engine was loaded.
        problem: Why the current publication is not the engine's, or is not known; None if all is well.
        since: When the problem was first met.
    """

    engine: Engine | None = None
    loaded_at: datetime | None = None
    problem: str | None = _STARTING
    since: datetime | None = None


class CurrentEngine:
    """Looks for a new publication in a thread of its own, and loads a new engine beside the old one.

    ``loaded`` is one value, replaced as a whole: take it once for an answer. The engine before is freed when its last
    answer is given. While loading fails, the engine before goes on, and ``loaded`` has the reason.

    Args:
        settings: Where the lake is.
        threads: How many photos an engine computes at once.
        refresh_seconds: Seconds between two looks.
    """

    def __init__(self, settings: Settings, *, threads: int, refresh_seconds: float) -> None:
        self.refresh_seconds = refresh_seconds
        self.loaded = Loaded(since=datetime.now(UTC))
        self._settings = settings
        self._threads = threads
        self._lake: Lake | None = None
        self._head: int | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look_again, name="publications", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread, after the look that it is at."""
        self._stop.set()

    def look(self) -> None:
        """Look once: load the current publication unless the engine has it. An error is kept as the problem."""
        try:
            with explain_lake_errors(self._settings):
                self._load_newer()
        except FruitsError as error:
            self._keep(str(error))
        except Exception as error:
            log.exception("loading a publication")
            self._keep(f"a defect, {type(error).__name__}; the service's log has the details")

    def _look_again(self) -> None:
        wait = self.refresh_seconds
        while not self._stop.is_set():
            self.look()
            # What cannot be loaded or indexed may cost minutes of all cores at each try.
            wait = min(2 * wait, _MOST_SECONDS) if self.loaded.problem else self.refresh_seconds
            self._stop.wait(max(wait, self.refresh_seconds))

    def _load_newer(self) -> None:
        lake = self._lake or open_read_only(self._settings)
        self._lake = None  # opened anew after an error
        head = lake.head("publications")
        if head != self._head or self.loaded.problem:
            publication, engine = current_publication(lake), self.loaded.engine
            if engine is None or engine.publication.publication_id != publication.publication_id:
                engine = Engine.of(lake, publication, threads=self._threads, before=engine)
                self.loaded = Loaded(engine, datetime.now(UTC), None)
                log.info("publication %s answers", publication.publication_id)
            self._index(lake, engine)
            self.loaded = replace(self.loaded, problem=None, since=None)
        self._head, self._lake = head, lake

    def _index(self, lake: Lake, engine: Engine) -> None:
        """Build the neighbour index that the engine's publication lacks; the engine answers without, meanwhile."""
        if engine.neighbours.unindexed_rows <= EXACT_ROWS:
            return
        build(lake, engine.publication, engine.pca, before=engine.neighbours)
        neighbours = open_neighbours(lake, engine.publication, engine.pca, before=engine.neighbours)
        self.loaded = replace(self.loaded, engine=replace(engine, neighbours=neighbours))

    def _keep(self, problem: str) -> None:
        if problem != self.loaded.problem:
            log.warning("%s", problem)
        begun = self.loaded.since if self.loaded.problem not in (None, _STARTING) else None
        self.loaded = replace(self.loaded, problem=problem, since=begun or datetime.now(UTC))
