"""One writer at a time, whoever comes and goes."""

import errno
import fcntl
import os

import pytest

from galampi.errors import UserError
from galampi.results.sole import sole_writer


@pytest.mark.parametrize("name", ["scores.json", "logs"])
def test_a_second_writer_is_refused_and_nothing_is_left(tmp_path, name) -> None:
    (tmp_path / "logs").mkdir()
    path = tmp_path / name
    for _ in range(2):
        refused = pytest.raises(UserError, match=rf"^.*/{name}: is being written by another process;")
        with sole_writer(path), refused, sole_writer(path):
            pass
    assert [file for _, _, files in os.walk(tmp_path) for file in files] == []


def test_what_a_killed_writer_leaves_keeps_nobody_out(tmp_path) -> None:
    (tmp_path / ".scores.json.lock").touch()
    with sole_writer(tmp_path / "scores.json"):
        pass


def test_a_place_that_cannot_be_written(tmp_path) -> None:
    (tmp_path / "file").touch()
    refused = pytest.raises(UserError, match="file/below: cannot be written: Not a directory")
    with refused, sole_writer(tmp_path / "file/below"):
        pass


def test_a_lock_whose_file_has_gone_guards_nothing(tmp_path, monkeypatch) -> None:
    """The one before removes it after a second has opened it, and a third makes it anew and has the lock."""
    lock, flock, third = tmp_path / ".file.lock", fcntl.flock, []

    def late(descriptor: int, operation: int) -> None:
        if not third:
            lock.unlink()
            third.append(os.open(lock, os.O_CREAT | os.O_RDWR))
            flock(third[0], operation)
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(UserError, match="is being written by another process"), sole_writer(tmp_path / "file"):
        pass
    os.close(third[0])


def test_a_file_system_without_locks_can_be_written(tmp_path, monkeypatch) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with sole_writer(tmp_path / "file"):
        pass
