"""The nearest photos of a publication are those that a comparison with every photo finds, whatever is in segments."""

import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fruits.analysis.moments import moments_of
from fruits.analysis.pca import PCA, fit, transform
from fruits.errors import FruitsError
from fruits.lake.catalog import Lake
from fruits.lake.files import FilePart
from fruits.lake.pca_tables import load_pca
from fruits.lake.publication import Publication
from fruits.lake.schemas import EMBEDDINGS
from fruits.serve import neighbours as module
from fruits.serve import segments
from fruits.serve.neighbours import Built, Neighbour, Neighbours, build, directions_of, index_folder, open_neighbours
from fruits.settings import Settings

pytestmark = pytest.mark.jobs

K = 6
PLAIN = PCA(10**9, np.zeros(K), np.eye(K), np.linspace(4, 1, K), np.full(K, 1 / K), 15.0)
QUERIES = np.random.default_rng(7).normal(size=(5, K)).astype(np.float32)


class Table:
    """The files of a table of embeddings, and the files that name deleted rows: as a lake has them, without a lake."""

    def __init__(self, folder: Path, pca: PCA = PLAIN, pca_id: str = "pca-1") -> None:
        self.folder, self.pca, self.pca_id = folder, pca, pca_id
        settings = Settings.load(
            lake=f"file://{folder}/lake", catalog_uri="sqlite:////nowhere.db", index_folder=folder / "index"
        )
        self.lake: Any = SimpleNamespace(settings=settings)
        self.rows: dict[str, list[str]] = {}  # keys of each file, in its order
        self.vectors: dict[str, np.ndarray] = {}  # of the live photos
        self.deletes: list[tuple[str, str, list[int]]] = []  # file of deletes, file, places
        self.sequence = self.number = 0

    def add(self, vectors: dict[str, np.ndarray]) -> None:
        uri, embedding = self._uri(), [vector.tolist() for vector in vectors.values()]
        columns = {"key": list(vectors), "label": [key[:2] for key in vectors], "embedding": embedding}
        schema = pa.schema([EMBEDDINGS.schema.field(name) for name in columns])
        pq.write_table(pa.table(columns, schema=schema), uri.removeprefix("file://"), row_group_size=5)
        self.rows[uri] = list(vectors)
        self.vectors |= vectors

    def delete(self, keys: Sequence[str]) -> None:
        for uri in self.rows:
            places = [place for place, key in enumerate(self.rows[uri]) if key in keys and self.lives(uri, place)]
            if places:
                named = self._uri()
                deletes = {"file_path": [uri] * len(places), "pos": pa.array(places, pa.int64())}
                pq.write_table(pa.table(deletes), named.removeprefix("file://"))
                self.deletes.append((named, uri, places))
        for key in keys:
            self.vectors.pop(key, None)

    def update(self, vectors: dict[str, np.ndarray]) -> None:
        self.delete(list(vectors))
        self.add(vectors)

    def compact(self) -> None:
        """As maintenance does: other files with the live rows."""
        self.rows, self.deletes = {}, []
        if self.vectors:
            self.add(dict(self.vectors))

    def lives(self, uri: str, place: int) -> bool:
        return not any(uri == of and place in places for _, of, places in self.deletes)

    def parts(self, *_: Any, **__: Any) -> list[FilePart]:
        return [
            FilePart(uri, 0, None, len(keys), 1, tuple(sorted(named for named, of, _ in self.deletes if of == uri)))
            for uri, keys in self.rows.items()
        ]

    def publication(self) -> Publication:
        identity, at = f"publication-{self.sequence}", {"embeddings": 1}
        return Publication(self.sequence, at, identity, "run", datetime.now(UTC), "m", self.pca_id, {})

    def open(self, **options: Any) -> Neighbours:
        return open_neighbours(self.lake, self.publication(), self.pca, **{"exact_rows": 4, **options})

    def build(self, **options: Any) -> Built:
        self.sequence += 1
        return build(self.lake, self.publication(), self.pca, **{"exact_rows": 4, "most_rows": 60, **options})

    @property
    def index(self) -> Path:
        return index_folder(self.lake.settings)

    def segments(self) -> list[str]:
        return segments.names(self.index)

    def brute(self, queries: np.ndarray, count: int) -> list[list[Neighbour]]:
        """Each photo compared with each query."""
        keys = sorted(self.vectors)
        if not keys:
            return [[] for _ in queries]
        published = directions_of(self.pca, np.stack([self.vectors[key] for key in keys])).astype(float)
        cosines = np.round(directions_of(self.pca, queries).astype(float) @ published.T, 5)
        order = np.argsort(-cosines, axis=1, kind="stable")[:, :count]
        return [
            [Neighbour(keys[row], keys[row][:2], pytest.approx(float(cosines[n, row]), abs=1e-9)) for row in rows]
            for n, rows in enumerate(order)
        ]

    def check(self, found: Neighbours, counts: Sequence[int] = (1, 3, 100)) -> None:
        assert found.rows == len(self.vectors)
        for count in counts:
            assert found.nearest(QUERIES, count) == self.brute(QUERIES, count)

    def _uri(self) -> str:
        self.number += 1
        return f"file://{self.folder}/{self.number}.parquet"


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Table:
    """An empty table; segments have lists of four photos."""
    return patched(Table(tmp_path), monkeypatch)


def patched(table: Table, monkeypatch: pytest.MonkeyPatch) -> Table:
    monkeypatch.setattr(module, "whole_files", table.parts)
    monkeypatch.setattr(segments, "_LIST_ROWS", 4)
    return table


def photos(number: int, seed: int = 0, first: int = 0) -> dict[str, np.ndarray]:
    """Photos of few directions, so that many are equally near."""
    rng = np.random.default_rng([seed, first])
    return {f"k{n:03}": rng.integers(-2, 3, K).astype(np.float32) for n in range(first, first + number)}


Step = tuple[str, int, int]
STEPS = st.lists(
    st.tuples(st.sampled_from(["add", "delete", "update", "compact", "build"]), st.integers(0, 99), st.integers(1, 30)),
    max_size=8,
)


class TestHistories:
    @given(steps=STEPS)
    def test_any_history_gives_the_nearest_of_a_comparison_with_every_photo(self, steps: list[Step]) -> None:
        with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as monkeypatch:
            table = patched(Table(Path(folder)), monkeypatch)
            table.add(photos(12))
            table.build()
            before = table.open()
            for kind, seed, number in steps:
                carry_out(table, kind, seed, number)
                before = table.open(before=before)
                table.check(before)
                assert before.unindexed_rows <= 4 or kind != "build"
            table.check(table.open())

    def test_new_photos_are_found_before_and_after_they_are_in_a_segment(self, table: Table) -> None:
        table.add(photos(20))
        table.check(table.open())
        assert table.open().unindexed_rows == 20
        assert table.build().indexed_rows == 20
        table.add(photos(3, first=20))
        opened = table.open()
        assert (opened.unindexed_rows, opened.rows) == (3, 23)
        table.check(opened)
        assert table.build().built == 0  # four may stay without a segment
        table.add(photos(30, first=23))
        assert table.build().built == 1
        assert table.open().unindexed_rows == 0
        table.check(table.open())

    def test_a_new_publication_keeps_the_segments_whose_files_it_has(self, table: Table) -> None:
        table.add(photos(40))
        table.build()
        (kept,) = table.segments()
        table.add(photos(6, first=40))
        assert (table.build().built, table.open().segments[0].card.name) == (1, kept)
        assert len(table.segments()) == 2

    def test_few_photos_are_compared_one_by_one_and_have_no_segment(self, table: Table) -> None:
        table.add(photos(20))
        table.build()
        table.delete([f"k{n:03}" for n in range(16)])
        opened = table.open()
        assert (opened.segments, opened.unindexed_rows) == ((), 4)
        table.check(opened)
        assert table.build().removed == 1
        assert table.segments() == []

    def test_deleted_photos_are_not_found_and_updated_ones_as_they_are_now(self, table: Table) -> None:
        table.add({f"k{n:03}": QUERIES[n % 5] + n / 100 for n in range(40)})
        table.build()
        table.delete(["k000", "k005"])
        table.update({"k001": -QUERIES[1]})
        opened = table.open()
        (segment,) = opened.segments
        assert segment.live_rows == 37
        assert opened.nearest(QUERIES, 1)[0][0].key == "k010"
        table.check(opened)

    def test_a_segment_with_many_deleted_photos_is_built_anew(self, table: Table) -> None:
        table.add(photos(40))
        table.build()
        table.delete([f"k{n:03}" for n in range(10)])
        assert table.build().built == 0
        table.delete(["k010"])
        assert table.build().built == 1
        (segment,) = table.open().segments
        assert (segment.card.rows, segment.live_rows, segment.live) == (29, 29, None)
        table.check(table.open())

    def test_readers_who_go_back_find_what_was_deleted_since(self, table: Table) -> None:
        """After a rollback the files are the same, with fewer deleted rows than the segment knew."""
        table.add(photos(30))
        before, vectors = list(table.deletes), dict(table.vectors)
        table.delete(["k003", "k004"])
        table.build()
        table.deletes, table.vectors = before, vectors
        assert table.open().segments == ()
        table.check(table.open())
        assert table.build().indexed_rows == 30
        table.check(table.open())

    def test_another_pca_version_has_segments_of_its_own(self, table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
        table.add(photos(30))
        table.build()
        other = PCA(10**9, np.zeros(K), np.eye(K), np.linspace(1, 9, K), np.full(K, 1 / K), 30.0)
        table.pca, table.pca_id = other, "pca-2"
        opened = table.open()
        assert opened.segments == ()
        table.check(opened)
        table.build()
        assert [segment.card.pca_id for segment in table.open().segments] == ["pca-2"]
        assert len(table.segments()) == 1
        table.check(table.open())

    def test_there_are_few_segments_and_a_photo_is_rarely_written_again(self, table: Table) -> None:
        written = most = 0
        for number in range(60):
            table.add(photos(5, first=5 * number))
            there = {segment.card.name for segment in table.open().segments}
            table.build()
            opened = table.open()
            written += sum(one.card.rows for one in opened.segments if one.card.name not in there)
            most = max(most, len(opened.segments))
        table.check(table.open())
        assert most <= 300 / 30 + 4
        assert written <= 300 * 6

    def test_many_equal_photos_come_by_key(self, table: Table) -> None:
        table.add({f"k{n:03}": np.ones(K, np.float32) for n in reversed(range(60))})
        table.build()
        found = table.open().nearest(np.ones((1, K), np.float32), 3)
        assert [photo.key for photo in found[0]] == ["k000", "k001", "k002"]

    def test_no_photo_at_all(self, table: Table) -> None:
        assert table.open().nearest(QUERIES, 3) == [[]] * len(QUERIES)
        assert table.build() == Built("publication-1", 0, 0, 0, 0, 0, 0)

    def test_many_new_photos_are_kept_in_a_file_and_not_in_memory(self, table: Table) -> None:
        table.add(photos(50))
        opened = table.open()
        assert opened.unindexed is not None
        assert isinstance(opened.unindexed.directions, np.memmap)
        assert list(table.index.iterdir()) == []


def carry_out(table: Table, kind: str, seed: int, number: int) -> None:
    there = sorted(table.vectors)
    some = there[seed % (len(there) or 1) :][:number]
    if kind == "add":
        table.add(photos(number, seed, 1000 * (table.number + 1)))
    elif kind == "delete":
        table.delete(some)
    elif kind == "update" and some:
        table.update({key: -vector for key, vector in zip(some, photos(len(some), seed).values(), strict=True)})
    elif kind == "compact":
        table.compact()
    else:
        table.build()


class TestFolder:
    @pytest.fixture
    def built(self, table: Table) -> Table:
        table.add(photos(40))
        table.build()
        return table

    @pytest.mark.parametrize("name", ["photos.arrow", "lists.faiss", "card.json"])
    @pytest.mark.parametrize("harm", ["cut", "changed", "gone"])
    def test_a_damaged_segment_is_not_used_and_built_again(
        self, built: Table, name: str, harm: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        (segment,) = built.segments()
        file = built.index / segment / name
        data = file.read_bytes()
        harmed = data[: len(data) // 2] if harm == "cut" else data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]
        file.unlink() if harm == "gone" else file.write_bytes(harmed)
        opened = built.open()
        assert (opened.segments, opened.unindexed_rows) == ((), 40)
        built.check(opened)
        assert built.build().built == 1
        assert [one.card.name for one in built.open().segments] == [segment]
        built.check(built.open())

    def test_what_is_not_a_segment_is_not_used(self, built: Table, caplog: pytest.LogCaptureFixture) -> None:
        (segment,) = built.segments()
        shutil.move(built.index / segment, built.index / "renamed")
        (built.index / "file").write_text("not ours")
        (built.index / "empty").mkdir()
        assert built.open().segments == ()
        assert "not a segment" in caplog.text
        assert built.build().removed == 3
        assert built.segments() == [segment]

    def test_a_segment_of_another_format_is_not_used(self, built: Table, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(segments, "_FORMAT", 2)
        assert built.open().segments == ()
        assert built.build().built == 1
        assert len(built.open().segments) == 1

    @pytest.mark.parametrize("name", ["_write_photos", "_write_lists", "remove"])
    def test_a_build_that_is_interrupted_leaves_nothing_that_is_used(
        self, table: Table, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        table.add(photos(40))

        def interrupted(*_: Any) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(segments, name, interrupted)
            with pytest.raises(KeyboardInterrupt):
                table.build()
        assert table.segments() == []
        assert len(segments.leftovers(table.index)) == 1
        table.check(table.open())
        assert table.build().built == 1
        assert segments.leftovers(table.index) == []
        table.check(table.open())

    def test_two_builders_at_once_build_a_segment_once(self, table: Table) -> None:
        table.add(photos(40))
        done: list[Built] = []
        builders = [threading.Thread(target=lambda: done.append(table.build())) for _ in range(2)]
        for builder in builders:
            builder.start()
        for builder in builders:
            builder.join()
        assert sorted(one.built for one in done) == [0, 1]
        table.check(table.open())

    def test_a_builder_waits_for_another_process(self, table: Table) -> None:
        table.add(photos(40))
        table.index.mkdir(parents=True)
        script = (
            "import fcntl, os, sys\nfcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX)\n"
            "print('held', flush=True)\nsys.stdin.read()\n"
        )
        with subprocess.Popen(
            [sys.executable, "-c", script, str(table.index)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as other:
            assert other.stdout is not None
            assert other.stdin is not None
            other.stdout.readline()
            builder = threading.Thread(target=table.build)
            builder.start()
            builder.join(0.3)
            assert builder.is_alive()
            assert table.segments() == []
            other.stdin.close()
            builder.join(30)
        assert len(table.segments()) == 1

    def test_who_has_a_segment_open_goes_on_when_it_is_removed(self, built: Table) -> None:
        opened = built.open()
        expected = opened.nearest(QUERIES, 5)
        shutil.rmtree(built.index)
        assert opened.nearest(QUERIES, 5) == expected

    def test_a_builder_of_an_older_publication_leaves_newer_segments(self, built: Table) -> None:
        rows, vectors = dict(built.rows), dict(built.vectors)
        built.add(photos(50, first=40))
        built.build()
        newer = set(built.segments())
        built.rows, built.vectors, built.sequence = rows, vectors, built.sequence - 2
        built.build()
        assert newer <= {*built.segments()}
        built.check(built.open())

    def test_a_sound_segment_is_not_read_again(self, built: Table, monkeypatch: pytest.MonkeyPatch) -> None:
        before = built.open()
        monkeypatch.setattr(module, "open_segment", lambda folder: pytest.fail(f"{folder} was read again"))
        assert len(built.open(before=before).segments) == 1
        assert built.build(before=before).segments == 1

    def test_a_folder_that_cannot_be_written_is_named(self, table: Table) -> None:
        table.add(photos(40))
        table.index.parent.write_text("a file")
        with pytest.raises(FruitsError, match=rf"{table.index.parent}.*FRUITS_INDEX_FOLDER"):
            table.build()


class TestLake:
    """On a lake, whose files PyIceberg writes."""

    @pytest.fixture
    def vectors(self) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(3)
        return {f"train/Kiwi/{n:02}": rng.random(K, dtype=np.float32) for n in range(30)}

    def found(self, settings: Settings, queries: np.ndarray) -> tuple[Neighbours, list[list[str]]]:
        lake = Lake.open(settings)
        publication = current(lake)
        pca = load_pca(lake, publication)
        opened = open_neighbours(lake, publication, pca, exact_rows=4)
        embedded, _ = transform(pca, queries)
        return opened, [[photo.key for photo in found] for found in opened.nearest(embedded, 3)]

    def test_runs_and_refits(self, folder_lake: Settings, fake_run: Any, vectors: Any, tmp_path: Path) -> None:
        settings = folder_lake.model_copy(update={"index_folder": tmp_path / "index"})
        run = fake_run(settings)
        run.publish("m", run.write(vectors, "m"))
        queries = np.stack(list(vectors.values())[:4])
        opened, exact = self.found(settings, queries)
        assert (len(opened.segments), opened.rows) == (0, 30)
        assert [near[0] for near in exact] == list(vectors)[:4]

        lake = Lake.open(settings)
        publication = current(lake)
        built = build(lake, publication, load_pca(lake, publication), exact_rows=4)
        assert (built.rows, built.indexed_rows, built.segments, built.built) == (30, 30, 1, 1)
        opened, indexed = self.found(settings, queries)
        assert (len(opened.segments), opened.unindexed_rows) == (1, 0)
        assert indexed == exact

        run = fake_run(settings)  # rows of another PCA version and of another backbone, which are not published
        run.write(vectors, "m", pca=fit(moments_of(np.stack(list(vectors.values())[:9])), 2))
        run.write({key.replace("Kiwi", "Fig"): vector for key, vector in vectors.items()}, "other")
        run.publish("m", publication.pca_id)
        opened, after = self.found(settings, queries)
        assert (len(opened.segments), opened.rows, after) == (1, 30, exact)

    def test_files_that_need_another_reader_have_no_segment(
        self, folder_lake: Settings, fake_run: Any, vectors: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        settings = folder_lake.model_copy(update={"index_folder": tmp_path / "index"})
        run = fake_run(settings)
        run.publish("m", run.write(vectors, "m"))
        lake = Lake.open(settings)
        publication = current(lake)
        build(lake, publication, load_pca(lake, publication), exact_rows=4)
        _, expected = self.found(settings, np.stack(list(vectors.values())[:4]))
        monkeypatch.setattr(module, "whole_files", lambda *_, **__: None)
        opened, found = self.found(settings, np.stack(list(vectors.values())[:4]))
        assert (opened.segments, opened.unindexed_rows, found) == ((), 30, expected)
        built = build(lake, publication, load_pca(lake, publication), exact_rows=4)
        assert (built.rows, built.indexed_rows, built.segments) == (30, 0, 0)


def current(lake: Lake) -> Publication:
    from fruits.lake.reader import current_publication

    return current_publication(lake)
