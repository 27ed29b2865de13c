"""A small disk, for tests of full ones."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class SmallDisk:
    """A disk of its own, in memory."""

    folder: Path

    @property
    def free(self) -> int:
        """Bytes that are left."""
        room = os.statvfs(self.folder)
        return room.f_bavail * room.f_frsize

    @contextmanager
    def filled(self, left: int = 0) -> Iterator[None]:
        """Inside, only ``left`` bytes are left, in whole pages."""
        ballast = self.folder / "ballast"
        ballast.write_bytes(bytes(max(0, self.free - left)))
        try:
            yield
        finally:
            ballast.unlink()


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[SmallDisk]:
    """A disk of so many megabytes at a new folder."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "none", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("ABSENT: the right to mount a small disk (tmpfs); a disk that is really full needs root")
    try:
        yield SmallDisk(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
