import errno

import pytest

from fruits.errors import FruitsError
from fruits.serve.targets import new_file, new_folder


def foreign_file(folder):
    return next((path.name for path in folder.iterdir() if path.suffix != ".dat"), None)


def make_folder(target, **options):
    return new_folder(target, foreign_file=foreign_file, **{"overwrite": False, **options})


def content(folder):
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_has_its_name_only_when_it_is_complete(tmp_path):
    with make_folder(tmp_path / "x") as part:
        (part / "a.dat").write_text("1")
        assert not (tmp_path / "x").exists()
    assert content(tmp_path) == {"x/a.dat": "1"}


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(errno.ENOSPC, "No space left on device")])
def test_what_breaks_off_leaves_nothing_and_the_old_folder_as_it_was(tmp_path, error):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "old.dat").write_text("old")
    with (
        pytest.raises(KeyboardInterrupt if error is KeyboardInterrupt else FruitsError),
        make_folder(tmp_path / "x", overwrite=True) as part,
    ):
        (part / "a.dat").write_text("1")
        raise error
    assert content(tmp_path) == {"x/old.dat": "old"}
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_folder_that_cannot_take_the_name_leaves_the_old_one(tmp_path, monkeypatch):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "old.dat").write_text("old")
    rename = type(tmp_path).rename

    def refuse(self, target):
        if self.suffix == ".part":
            raise PermissionError("no")
        return rename(self, target)

    monkeypatch.setattr(type(tmp_path), "rename", refuse)
    with pytest.raises(FruitsError, match="not written"), make_folder(tmp_path / "x", overwrite=True):
        pass
    assert content(tmp_path) == {"x/old.dat": "old"}


def test_an_old_folder_goes_whole(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "old.dat").write_text("old")
    with make_folder(tmp_path / "x", overwrite=True) as part:
        (part / "new.dat").write_text("new")
    assert content(tmp_path) == {"x/new.dat": "new"}
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "x").symlink_to(tmp_path / "there")
    with make_folder(tmp_path / "x", overwrite=True) as part:
        (part / "new.dat").write_text("new")
    assert (tmp_path / "x").is_symlink()
    assert content(tmp_path / "there") == {"new.dat": "new"}


def test_a_folder_with_other_files_is_never_replaced(tmp_path):
    path = tmp_path / "x" / "notes.txt"
    path.parent.mkdir()
    path.write_text("mine")
    with pytest.raises(FruitsError, match="no export wrote"), make_folder(tmp_path / "x", overwrite=True):
        pytest.fail("the work began")
    assert path.exists()


def test_files_that_come_meanwhile_are_kept(tmp_path):
    with pytest.raises(FruitsError, match="no export wrote"), make_folder(tmp_path / "x", overwrite=True):
        (tmp_path / "x").mkdir()
        (tmp_path / "x" / "mine.txt").write_text("mine")
    assert content(tmp_path) == {"x/mine.txt": "mine"}


def test_targets_that_cannot_be_are_refused_before_the_work(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    for target, reason in (("file", "is a file"), ("folder", "exists already"), ("none/x", "no folder")):
        with pytest.raises(FruitsError, match=reason), make_folder(tmp_path / target):
            pytest.fail("the work began")
    for target, reason in (("file", "exists already"), ("folder", "is a folder"), ("none/x", "no folder")):
        with pytest.raises(FruitsError, match=reason), new_file(tmp_path / target, overwrite=False):
            pytest.fail("the work began")
