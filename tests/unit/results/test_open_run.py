"""A run as its readers see it: `job.h5`, its links, and what may be missing."""

import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import h5py
import numpy as np
import pytest
import rank_rows
from rank_rows import SKETCH, write_row

from galampi.errors import ResultsError
from galampi.results import JobFile, Position, RankWriter, Restart, UpdateRow, open_run


@pytest.fixture
def run(tmp_path):
    """Make a run of three ranks of which the last has not begun to write."""
    attributes = {"job_toml": 'name = "é"\n', "argv": ["galampi", "train"], "seed": 1}
    JobFile.create(tmp_path, attributes, num_ranks=3)
    for rank in range(2):
        with RankWriter(tmp_path / f"rank-{rank:04d}.h5", rank=rank, sketch=SKETCH) as writer:
            for update in range(1, 6 + rank):
                write_row(writer, update)
    return tmp_path


def test_job_file(run):
    opened = open_run(run)
    assert opened.status == "running"
    assert opened.job_toml == 'name = "é"\n'
    assert opened.num_ranks == 3
    assert opened.attributes["argv"] == ["galampi", "train"]
    assert opened.attributes["seed"] == 1
    assert opened.attributes["schema_version"] == 1
    assert open_run(run / "job.h5").attributes == open_run(str(run)).attributes == opened.attributes


@pytest.mark.parametrize("settings", [{}, {"swmr": True}, {"locking": False}])
def test_files_that_this_process_has_open_are_read_all_the_same(run, settings):
    with h5py.File(run / "rank-0001.h5", "r", **settings), h5py.File(run / "job.h5", "r"):
        opened = open_run(run)
        assert opened.status == "running"
        assert opened.ranks[1].updates.num_rows == 6


def test_status_changes_and_all_else_stays(run):
    before = open_run(run).attributes
    JobFile.set_status(run, "finished", wall_s=1.5)
    after = open_run(run)
    assert after.status == "finished"
    assert after.attributes == {**before, "status": "finished", "wall_s": 1.5}
    assert after.ranks[0].updates.num_rows == 5
    with h5py.File(run / "job.h5") as file:
        assert file["ranks/0001/updates/update"].shape == (6,)
    with pytest.raises(ValueError, match="must be one of running, finished, stopped, partial, failed"):
        JobFile.set_status(run, "done")


def test_all_ranks_may_fail_at_once(run):
    before = open_run(run).attributes
    names = {path.name for path in run.iterdir()}
    with ThreadPoolExecutor(8) as pool:
        for failed in [pool.submit(JobFile.fail, run, rank) for rank in range(8)]:
            failed.result()
    assert open_run(run).attributes == {**before, "status": "failed"}
    assert {path.name for path in run.iterdir()} == names


def test_what_somebody_else_put_beside_a_run_stays(run):
    for name in ("failed-attempts/notes.txt", "failed-0001/notes.txt", "failed-0001/job.h5", ".failed-0002-x/job.h5"):
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text("notes")
    JobFile.set_status(run, "finished")
    JobFile.fail(run, 1)
    assert (run / "failed-attempts/notes.txt").read_text() == (run / "failed-0001/notes.txt").read_text() == "notes"
    assert (run / "failed-0001/job.h5").read_text() == "notes"
    # Of a rank that was killed while it said so.
    assert not list(run.glob(".failed-*"))


def test_status_of_a_run_without_job_file(tmp_path):
    with pytest.raises(ResultsError, match="no such file"):
        JobFile.set_status(tmp_path, "finished")


def test_external_links_open_with_plain_h5py(run):
    JobFile.set_status(run, "finished")
    with h5py.File(run / "job.h5") as file:
        np.testing.assert_array_equal(file["ranks/0000/updates/weight"], np.arange(1, 6))
        assert file["ranks/0001"].attrs["rank"] == 1
        assert list(file["ranks"]) == ["0000", "0001", "0002"]
        with pytest.raises(KeyError):
            file["ranks/0002"]


@pytest.mark.parametrize("killed", [False, True])
def test_external_links_to_a_file_that_is_being_written(tmp_path, killed):
    JobFile.create(tmp_path, {}, num_ranks=1)
    command = [sys.executable, rank_rows.__file__, "endless", tmp_path / "rank-0000.h5"]
    writer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert writer.stdout is not None
        writer.stdout.readline()
        if killed:
            writer.send_signal(signal.SIGKILL)
            writer.wait()
        with h5py.File(tmp_path / "job.h5", swmr=True) as file:
            updates = file["ranks/0000/updates"]
            num_rows = updates["num_rows"][()]
            assert num_rows >= 3
            np.testing.assert_array_equal(updates["weight"][:num_rows], np.arange(1, num_rows + 1))
    finally:
        writer.kill()
        writer.communicate()


def test_rank_file_that_does_not_exist_yet(run):
    rank = open_run(run).ranks[2]
    assert not rank.exists
    assert rank.updates.num_rows == 0
    assert rank.updates["weight"].shape == (0,)
    assert rank.updates["weight"].dtype == np.float64
    assert rank.sketches["value"].shape == (0, 0)
    assert rank.restarts["reason"].shape == (0,)
    assert rank.attributes == {}
    assert [file.exists for file in open_run(run).ranks] == [True, True, False]


def test_ranks_that_have_left(run):
    JobFile.create(run, {}, num_ranks=1)
    opened = open_run(run)
    assert [file.rank for file in opened.ranks] == [0]
    assert [(file.rank, file.updates.num_rows) for file in opened.all_ranks] == [(0, 5), (1, 6)]
    pytest.importorskip("pandas")
    assert opened.to_pandas()["rank"].tolist() == [0] * 5 + [1] * 6


def damage(file, kind):
    """Damage column `weight` of /updates, or the table, in a way that HDF5 itself does not mind."""
    if kind == "table":
        del file["updates"]
        file["updates"] = np.zeros(3)
        return
    del file["updates/weight"]
    match kind:
        case "short":
            file["updates/weight"] = np.zeros(3)
        case "text":
            file["updates/weight"] = ["x"] * 5
        case "scalar":
            file["updates/weight"] = 1.0
        case "matrix":
            file["updates/weight"] = np.zeros((5, 2))
        case "group":
            file.create_group("updates/weight")


@pytest.mark.parametrize("kind", ["short", "text", "scalar", "matrix", "group", "table"])
def test_a_column_that_is_none(run, kind):
    path = run / "rank-0000.h5"
    with h5py.File(path, "r+") as file:
        damage(file, kind)
    with pytest.raises(ResultsError, match=r"rank-0000\.h5: damaged: ") as raised:
        _ = open_run(run).ranks[0].updates["weight"]
    assert "\n" not in str(raised.value)


def test_a_text_column_that_holds_numbers(run):
    with h5py.File(run / "rank-0000.h5", "r+") as file:
        del file["energy/source"]
        file["energy/source"] = np.zeros(5)
    with pytest.raises(ResultsError, match=r"/energy/source holds float64; must hold S64"):
        _ = open_run(run).ranks[0].energy["source"]


def test_run_without_job_file(run):
    (run / "job.h5").unlink()
    opened = open_run(run)
    assert opened.status == "unknown"
    assert opened.num_ranks == 2
    assert opened.attributes == {}
    assert opened.ranks[1].updates.num_rows == 6
    with pytest.raises(ResultsError, match=r"job\.h5: missing"):
        _ = opened.job_toml


def test_no_run_at_all(tmp_path):
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(ResultsError, match="no run here"):
            open_run(path)


def set_schema_version(path, version):
    """Pretend another version of galampi wrote a file."""
    with h5py.File(path, "r+") as file:
        file.attrs["schema_version"] = version


def test_newer_schema(run):
    set_schema_version(run / "rank-0001.h5", 2)
    with pytest.raises(ResultsError, match=r"rank-0001\.h5: schema_version is 2, of a newer galampi"):
        _ = open_run(run).ranks
    set_schema_version(run / "job.h5", 2)
    with pytest.raises(ResultsError, match=r"job\.h5: schema_version is 2, of a newer galampi"):
        open_run(run)


def test_truncated_rank_file(run):
    path = run / "rank-0000.h5"
    path.write_bytes(path.read_bytes()[:20_000])
    with pytest.raises(ResultsError, match=r"rank-0000\.h5: no HDF5 file, or a truncated one") as failure:
        _ = open_run(run).ranks
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize("kept", [0, 47, 48, 5000, 20_000])
def test_truncated_file_of_a_killed_writer(tmp_path, kept):
    command = [sys.executable, rank_rows.__file__, "endless", tmp_path / "rank-0000.h5"]
    writer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    writer.stdout.readline()
    writer.kill()
    writer.communicate()
    path = tmp_path / "rank-0000.h5"
    content = path.read_bytes()
    assert len(content) > kept
    path.write_bytes(content[:kept])
    with pytest.raises(ResultsError, match="no HDF5 file, or a truncated one"):
        _ = open_run(tmp_path).ranks


def test_resumed_or_removed_since_it_was_opened(run):
    opened = open_run(run)
    assert opened.ranks[0].updates.num_rows == opened.ranks[1].updates.num_rows - 1
    (run / "rank-0001.h5").unlink()
    with pytest.raises(ResultsError, match="was removed"):
        _ = opened.ranks[1].updates["weight"]
    with RankWriter(run / "rank-0001.h5", rank=1) as writer:
        write = opened.ranks[0].updates.read(start=-1)
        writer.write_update(UpdateRow(**{name: values[0].item() for name, values in write.items()}))
    with pytest.raises(ResultsError, match="was resumed"):
        _ = opened.ranks[1].updates["weight"]


def test_files_are_not_kept_open(run):
    opened = open_run(run)
    _ = opened.ranks[0].updates["weight"]
    with h5py.File(run / "rank-0000.h5", "r+") as file:
        file.attrs["mine"] = 1


def test_consensus_distance_needs_sketches(run):
    with pytest.raises(ResultsError, match=r"rank-0002\.h5: holds no sketches"):
        open_run(run).consensus_distance()


def test_the_wing_starts_fast():
    slow = {"torch", "mpi4py", "pandas", "xarray", "scipy"}
    code = f"import sys, galampi.results; print(sorted({slow} & sys.modules.keys()))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_a_run_that_was_resumed_since_it_was_opened_is_told(tmp_path) -> None:
    """Though it has as many rows again: those before and after would be of two histories."""
    with RankWriter(tmp_path / "rank-0000.h5", rank=0, sketch=SKETCH) as writer:
        for update in (1, 2, 3):
            write_row(writer, update)
    JobFile.create(tmp_path, {"job_toml": "", "num_restarts": 0}, 1)
    run = open_run(tmp_path)
    assert run.ranks[0].updates["update"].tolist() == [1, 2, 3]
    restart = Restart(update=2, time_s=1.0, reason="killed", weights_restarted=True)
    with RankWriter(
        tmp_path / "rank-0000.h5", rank=0, sketch=SKETCH, resume_at=Position(2, 0, 0), restart=restart
    ) as writer:
        for update in (3, 4):
            write_row(writer, update)
    with pytest.raises(ResultsError, match="was resumed from a checkpoint since the run was opened; open it again"):
        run.ranks[0].updates["weight"]
    assert open_run(tmp_path).ranks[0].updates["update"].tolist() == [1, 2, 3, 4]


def test_a_run_is_where_it_was_opened(tmp_path, monkeypatch) -> None:
    """As in a notebook that goes elsewhere."""
    with RankWriter(tmp_path / "run/rank-0000.h5", rank=0, sketch=SKETCH) as writer:
        write_row(writer, 1)
    JobFile.create(tmp_path / "run", {"job_toml": "", "num_restarts": 0}, 1)
    monkeypatch.chdir(tmp_path)
    run = open_run("run")
    monkeypatch.chdir("/")
    assert run.ranks[0].updates["update"].tolist() == [1]
    assert str(run.path) == "run"
