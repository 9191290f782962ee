"""The folder of a run: claimed by one job at a time, and left as it was where no run has begun."""

import os
import shutil
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from galampi.errors import UnreadableError, UserError
from galampi.policies.stored import checkpoint_path
from galampi.results import load_checkpoint, save_checkpoint
from galampi.training.checkpoint_set import load, recover
from galampi.training.folder import claimed, put_back, set_aside


def claim(out, **settings):
    return claimed(out, resume=False, **settings)


def test_a_job_that_is_refused_leaves_no_folder(tmp_path) -> None:
    with pytest.raises(KeyError), claim(tmp_path / "runs" / "a"):
        assert (tmp_path / "runs" / "a" / "lock").exists()
        raise KeyError
    assert not (tmp_path / "runs" / "a").exists()


@pytest.mark.parametrize("name", [None, "notes.txt"])
def test_a_folder_that_was_there_stays_with_what_lies_in_it(tmp_path, name) -> None:
    names = [] if name is None else [name]
    for each in names:
        (tmp_path / each).touch()
    with claim(tmp_path):
        pass
    assert os.listdir(tmp_path) == names


def test_a_folder_made_for_the_job_goes_but_not_with_what_lies_in_it(tmp_path) -> None:
    for name in ("empty", "log"):
        (tmp_path / name).mkdir()
    (tmp_path / "log" / "slurm.out").touch()
    for name in ("empty", "log"):
        with claim(tmp_path / name, is_new=True):
            pass
    assert not (tmp_path / "empty").exists()
    assert os.listdir(tmp_path / "log") == ["slurm.out"]


def test_a_claim_lasts_as_long_as_its_context(tmp_path) -> None:
    with claim(tmp_path):
        with pytest.raises(UserError, match="in use by a job that is still running"), claim(tmp_path):
            pass
        assert (tmp_path / "lock").exists()
        # A run has begun.
        (tmp_path / "job.h5").touch()
    with claimed(tmp_path, resume=True):
        pass
    assert sorted(os.listdir(tmp_path)) == ["job.h5", "lock"]


def test_a_lock_of_another_job_stays(tmp_path) -> None:
    """The folder was renamed, and another job has taken its name."""
    with claim(tmp_path / "a"):
        (tmp_path / "a").rename(tmp_path / "b")
        other = claim(tmp_path / "a")
        other.__enter__()
    assert os.listdir(tmp_path / "a") == ["lock"]
    other.__exit__(None, None, None)


def test_a_lock_that_was_removed_before_it_was_taken_is_made_anew(tmp_path, monkeypatch) -> None:
    from galampi.training import folder

    removed = []

    def flock(descriptor, operation):
        if not removed:
            (tmp_path / "lock").unlink()
            removed.append(descriptor)

    monkeypatch.setattr(folder.fcntl, "flock", flock)
    with claim(tmp_path):
        assert (tmp_path / "lock").exists() and removed


@pytest.mark.parametrize("has_begun", [True, False])
def test_a_run_that_was_set_aside_is_put_back_unless_another_has_begun(tmp_path, has_begun) -> None:
    for name in ("job.h5", "rank-0000.h5", "checkpoint/rank-0000.h5"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("old")
    aside = set_aside(tmp_path)
    (tmp_path / "checkpoint").mkdir()
    for name in ("rank-0000.h5", "rank-0001.h5", *(["job.h5"] if has_begun else [])):
        (tmp_path / name).write_text("new")
    put_back(tmp_path, aside)
    there = {str(path.relative_to(tmp_path)): path.read_text() for path in tmp_path.rglob("*.h5")}
    if has_begun:
        assert there["job.h5"] == "new" and there["before-1/job.h5"] == "old"
    else:
        assert there == {"job.h5": "old", "rank-0000.h5": "old", "checkpoint/rank-0000.h5": "old"}
        assert not aside.exists()


@pytest.mark.parametrize("name", ["checkpoint/model.pt", "checkpoint.new/rank-0000.h5", "kept/best/model.pt"])
def test_checkpoints_without_a_run_are_refused_and_stay(tmp_path, name) -> None:
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).write_text("of another program")
    with pytest.raises(UserError, match=f"holds {name[:8]}.*no job.h5; choose another --out"), claim(tmp_path):
        pass
    assert (tmp_path / name).read_text() == "of another program"


def save(out, rank: int, update: int) -> None:
    path = checkpoint_path(out, rank)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(path, {"counters": {"update": update}, "learner": {"z": np.zeros(3, np.float32)}})


def test_the_first_checkpoints_come_before_a_run_and_hold_no_later_start_up(tmp_path) -> None:
    """As a kill between the two leaves them; also where another run was set aside first."""
    for name in ("job.h5", "rank-0000.h5"):
        (tmp_path / name).write_text("old")
    save(tmp_path, 0, 70)
    aside = set_aside(tmp_path)
    for rank in (0, 1):
        save(tmp_path, rank, 0)
    (tmp_path / "checkpoint/rank-0002.h5.part").write_text("half of one")
    with claim(tmp_path):
        assert not (tmp_path / "checkpoint").exists()
    save(tmp_path, 0, 0)
    put_back(tmp_path, aside)
    assert load_checkpoint(checkpoint_path(tmp_path, 0))["counters"]["update"] == 70


@pytest.mark.parametrize("is_complete", [True, False])
def test_what_somebody_keeps_among_checkpoints_outlives_a_kill(tmp_path, is_complete) -> None:
    for name in ("checkpoint/rank-0000.h5", "checkpoint.new/rank-0000.h5", "checkpoint.new/rank-0000-best.h5"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    if is_complete:
        (tmp_path / "checkpoint.new/complete").touch()
    recover(tmp_path / "checkpoint")
    assert sorted(os.listdir(tmp_path / "checkpoint")) == ["rank-0000-best.h5", "rank-0000.h5"]
    kept = "checkpoint.new" if is_complete else "checkpoint"
    assert (tmp_path / "checkpoint/rank-0000.h5").read_text() == f"{kept}/rank-0000.h5"
    assert not (tmp_path / "checkpoint.new").exists()


def test_later_checkpoints_of_a_run_that_is_gone_stay(tmp_path) -> None:
    save(tmp_path, 0, 0)
    save(tmp_path, 1, 5)
    with (
        pytest.raises(UserError, match=r"holds checkpoint/rank-0001\.h5, where a run keeps its checkpoints"),
        claim(tmp_path),
    ):
        pass
    assert len(list((tmp_path / "checkpoint").iterdir())) == 2


def test_what_a_start_that_was_cut_short_left_goes_and_what_is_named_alike_stays(tmp_path) -> None:
    (tmp_path / "checkpoint").mkdir()
    for name in ("rank-0000.h5", "rank-0001.h5.part", "rank-2024.h5.bak", "rank-1-notes.h5", "rank-12.h5"):
        (tmp_path / name).touch()
    with claim(tmp_path):
        assert sorted(os.listdir(tmp_path)) == ["lock", "rank-1-notes.h5", "rank-12.h5", "rank-2024.h5.bak"]


def test_what_is_said_of_a_run_is_set_aside_with_it(tmp_path) -> None:
    for name in ("job.h5", "rank-0000.h5", "evaluation.h5", "evaluation-rank-3.h5", "thesis.txt"):
        (tmp_path / name).touch()
    aside = set_aside(tmp_path)
    assert sorted(os.listdir(aside)) == ["evaluation-rank-3.h5", "evaluation.h5", "job.h5", "rank-0000.h5"]
    assert sorted(os.listdir(tmp_path)) == ["before-1", "thesis.txt"]


def test_a_set_of_checkpoints_that_cannot_be_deleted_is_replaced_all_the_same(tmp_path, monkeypatch) -> None:
    """As NFS refuses what somebody reads; and a kill after each step of it leaves one set or the other."""
    old, new = tmp_path / "checkpoint", tmp_path / "checkpoint.new"
    monkeypatch.setattr("shutil.rmtree", lambda path, ignore_errors=False: None)
    rename = Path.rename

    for number, num_renames in enumerate([0, 1, 2]):
        for folder in (old, new):
            folder.mkdir(exist_ok=True)
            (folder / "rank-0000.h5").write_text(f"{folder.name} {number}")
        (new / "complete").touch()
        left = [num_renames]

        def renamed(self, target, left=left):
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            return rename(self, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", renamed)
            with suppress(KeyboardInterrupt):
                recover(old)
        recover(old)
        assert (old / "rank-0000.h5").read_text() == f"checkpoint.new {number}"
        assert not new.exists() and not (old / "complete").exists()


def test_a_checkpoint_that_may_not_be_read_is_not_a_damaged_one(tmp_path, monkeypatch) -> None:
    save(tmp_path, 0, 70)
    previous = tmp_path / "checkpoint/previous"
    previous.mkdir()
    shutil.copy(checkpoint_path(tmp_path, 0), previous)
    save(tmp_path, 0, 80)
    checkpoint_path(tmp_path, 0).write_bytes(b"half")
    assert load(tmp_path, 0)[0]["counters"]["update"] == 70

    def stale(path, *, without=()):
        raise UnreadableError(f"{path}: cannot be read: Stale file handle")

    monkeypatch.setattr("galampi.training.checkpoint_set.load_checkpoint", lambda path, without=(): stale(path))
    with pytest.raises(UnreadableError, match="Stale file handle"):
        load(tmp_path, 0)
