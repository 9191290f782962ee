"""What `status` says of runs that it may not look into."""

import errno
import os

import pytest
from made_runs import make_run

from galampi.cli import run
from galampi.job import Job
from galampi.launch.folder import lay_down
from galampi.launch.status import run_status
from galampi.results import files


@pytest.fixture
def closed(monkeypatch):
    """Let nobody open a file any more; root may read what is everybody else's."""

    def refuse(path, flags, *arguments):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    return lambda: monkeypatch.setattr(files.os, "open", refuse)


def test_a_run_that_may_not_be_read_is_none_that_failed(tmp_path, capsys, closed) -> None:
    folder = make_run(tmp_path / "run")
    closed()
    assert run(["status", str(folder)]) == 2
    assert capsys.readouterr().out == f"{folder}/job.h5: cannot be read: Permission denied\n"


def test_a_folder_that_may_not_be_entered_hides_no_other(tmp_path, capsys, monkeypatch) -> None:
    folder = make_run(tmp_path / "run")

    def refuse(self, pattern):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.glob", lambda self, pattern: refuse(self, pattern) if "hers" in str(self) else [])
        assert run(["status", str(tmp_path / "hers"), str(folder)]) == 2
    told = capsys.readouterr().out
    assert told == f"{tmp_path}/hers: cannot be read: Permission denied\n{folder}: finished\n"


def test_the_file_of_a_job_stands_for_its_run(tmp_path, capsys) -> None:
    folder = make_run(tmp_path / "run")
    assert run(["status", str(folder / "job.h5")]) == 0
    assert capsys.readouterr().out == f"{folder}: finished\n"
    (folder / "job.h5").write_bytes(b"damaged")
    assert run_status(folder) == "failed"


def test_a_run_that_may_not_be_read_hides_no_other_of_its_sweep(tmp_path, capsys, monkeypatch) -> None:
    sweep, system_open = tmp_path / "sweep", os.open
    (sweep / "jobs").mkdir(parents=True)
    for number, name in enumerate("ab"):
        (sweep / "jobs" / f"{number}-{name}.toml").touch()
        make_run(sweep / name)

    def refuse(path, flags, *arguments):
        if "/a/" in str(path):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return system_open(path, flags, *arguments)

    monkeypatch.setattr(files.os, "open", refuse)
    assert run(["status", str(sweep)]) == 2
    told = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in told[:2]] == ["unreadable", "done"]
    assert told[2] == "2 runs: 1 done, 1 unreadable"


def test_a_job_that_waits_is_no_folder_without_a_run(tmp_path, capsys) -> None:
    lay_down(Job(), tmp_path / "run", dry_run=False)
    assert run(["status", str(tmp_path / "run"), str(tmp_path)]) == 2
    told = capsys.readouterr().out.splitlines()
    assert "submitted but not begun" in told[0]
    assert told[1] == f"{tmp_path}: missing: no job.h5 there"
