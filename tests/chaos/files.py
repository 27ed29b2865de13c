"""The files of a lake in memory, in the place of obstore: run documents, leases, manifests, approvals and pins.

The library's own functions in `fruits.stores` read and write them, so each write and each deletion is an effect.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import IO, Any

from obstore.exceptions import AlreadyExistsError


@dataclass(frozen=True)
class Folder:
    """A store: what obstore's functions are given."""

    prefix: str


@dataclass(frozen=True)
class File:
    """A file, and what obstore's answer has of it."""

    data: bytes
    last_modified: datetime

    def to_bytes(self) -> bytes:
        """The answer's bytes, as Python has them."""
        return self.data

    def bytes(self) -> "File":
        """The answer's bytes."""
        return self


@dataclass
class MemoryFiles:
    """All files by their whole path, and those functions of obstore that the library calls for a lake."""

    files: dict[str, File] = field(default_factory=dict)

    def open_store(self, _: Any, uri: str) -> Folder:
        """As `fruits.stores.open_store`."""
        return Folder(uri)

    def get(self, store: Folder, path: str) -> File:
        """A file."""
        return self.files[self._known(store, path)]

    def head(self, store: Folder, path: str) -> dict[str, Any]:
        """What is known of a file."""
        return self._described(store, self._known(store, path))

    def list(
        self, store: Folder, prefix: str | None = None, offset: str | None = None
    ) -> Iterator[Sequence[dict[str, Any]]]:
        """The files of a folder, in one batch."""
        start = "/".join(filter(None, (store.prefix, prefix))) + "/"
        found = [self._described(store, path) for path in self.files if path.startswith(start)]
        yield [item for item in found if offset is None or item["path"] > offset]

    def put(self, store: Folder, path: str, data: bytes | IO[bytes], *, mode: str, **_: Any) -> None:
        """Write a file."""
        whole = f"{store.prefix}/{path}"
        if mode == "create" and whole in self.files:
            raise AlreadyExistsError(whole)
        self.files[whole] = File(data if isinstance(data, bytes) else data.read(), datetime.now(UTC))

    def delete(self, store: Folder, paths: Sequence[str]) -> None:
        """Delete files."""
        for path in paths:
            del self.files[self._known(store, path)]

    def _known(self, store: Folder, path: str) -> str:
        whole = f"{store.prefix}/{path}"
        if whole not in self.files:
            raise FileNotFoundError(whole)
        return whole

    def _described(self, store: Folder, whole: str) -> dict[str, Any]:
        file = self.files[whole]
        path = whole.removeprefix(f"{store.prefix}/")
        return {"path": path, "last_modified": file.last_modified, "size": len(file.data), "e_tag": None}
