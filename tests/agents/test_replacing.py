"""Files that get new content all at once."""

from pathlib import Path

import pytest
from headway.agents.core.files.replacing import replacing


@pytest.mark.parametrize("sync", [False, True])
def test_new_content_takes_the_place_of_the_old(tmp_path: Path, sync: bool) -> None:
    path = tmp_path / "made" / "a.txt"
    for content in ("one", "two"):
        with replacing(path, sync=sync, suffix=".txt") as temporary:
            temporary.write_text(content)
            assert temporary.name.startswith(".a.txt.tmp-")
            assert temporary.suffix == ".txt"
        assert path.read_text() == content
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444, 0o755])
def test_who_may_read_a_file_stays_the_same(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "a"
    path.write_text("old")
    path.chmod(mode)
    with replacing(path) as temporary:
        assert temporary.stat().st_mode & 0o777 == mode  # not open to others even while it is written
        temporary.write_text("new")
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("new", mode)


def test_a_new_file_is_as_open_as_others(tmp_path: Path) -> None:
    with replacing(tmp_path / "a") as temporary:
        temporary.touch()
    (tmp_path / "b").touch()
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("folder", [False, True])
def test_an_error_leaves_what_was_there(tmp_path: Path, error: type[BaseException], folder: bool) -> None:
    path = tmp_path / "a"
    if folder:
        path.mkdir()
    old = path / "part" if folder else path
    old.write_text("old")

    def fail() -> None:
        with replacing(path) as temporary:
            if folder:
                temporary.mkdir()
                (temporary / "part").touch()
            else:
                temporary.write_text("half of the n")
            raise error

    with pytest.raises(error):
        fail()
    assert old.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "a"):
        pass
    assert list(tmp_path.iterdir()) == []
