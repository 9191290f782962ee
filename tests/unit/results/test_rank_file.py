"""Rank files: read while written, after kill -9, and resumed."""

import itertools
import random
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import rank_rows
from rank_rows import SKETCH, write_row

from galampi.analysis.statistics import num_updates
from galampi.errors import ResultsError
from galampi.results import Position, RankWriter, Restart, Sketch, UpdateRow, flush_period_s, open_run
from galampi.results.schema import TABLES


def start(*arguments: object) -> subprocess.Popen[str]:
    """Run `rank_rows.py` in a process of its own."""
    command = [sys.executable, rank_rows.__file__, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def write_rows(path: Path, num_updates: int) -> Position:
    """Write a finished file with that many rows in every table."""
    with RankWriter(path, rank=0, sketch=SKETCH) as writer:
        for update in range(1, num_updates + 1):
            write_row(writer, update)
        return writer.position()


def resume(path: Path, position: Position, **changes: object) -> RankWriter:
    """Resume a file with everything as `write_rows` has it."""
    restart = Restart(update=position.num_updates, time_s=1.0, reason="test", weights_restarted=True)
    arguments = {"rank": 0, "sketch": SKETCH, "resume_at": position, "restart": restart, **changes}
    return RankWriter(path, **arguments)


def assert_whole(out: Path) -> Position:
    """Check every committed row of rank 0, and return how many are committed."""
    rank = open_run(out).ranks[0]
    position = Position(rank.updates.num_rows, rank.episodes.num_rows, rank.sketches.num_rows)
    for table in (rank.updates, rank.episodes, rank.sketches):
        expected = np.arange(1, table.num_rows + 1)
        for name, values in table.read().items():
            if name == "value" and table.num_rows:
                np.testing.assert_array_equal(values, np.repeat(expected[:, None], 8, axis=1))
            elif name != "value":
                factor = 80 if name == "env_steps" else 1
                np.testing.assert_array_equal(values, factor * expected, err_msg=name)
    return position


def rows(number: int) -> Position:
    """The position with that many rows in every table."""
    return Position(number, number, number)


def test_rows_come_back(tmp_path):
    position = write_rows(tmp_path / "rank-0000.h5", 2500)
    assert position == rows(2500)
    assert assert_whole(tmp_path) == rows(2500)
    assert open_run(tmp_path).ranks[0].attributes["rank"] == 0


def test_buffered_rows_are_not_seen_before_the_flush(tmp_path):
    with RankWriter(tmp_path / "rank-0000.h5", rank=0, sketch=SKETCH) as writer:
        write_row(writer, 1)
        assert assert_whole(tmp_path) == rows(0)
        writer.flush()
        assert assert_whole(tmp_path) == rows(1)


def test_read_part_of_a_table(tmp_path):
    write_rows(tmp_path / "rank-0000.h5", 10)
    updates = open_run(tmp_path).ranks[0].updates
    assert updates.read("update", "weight", start=-2).keys() == {"update", "weight"}
    assert updates.read("update", start=-2)["update"].tolist() == [9, 10]
    assert updates.read("update", start=2, stop=4)["update"].tolist() == [3, 4]
    with pytest.raises(KeyError):
        updates["no such column"]


def test_thinning_keeps_multiples_and_is_recorded(tmp_path):
    with RankWriter(tmp_path / "rank-0000.h5", rank=0, thinning=4, sketch=SKETCH) as writer:
        for update in range(1, 11):
            write_row(writer, update)
    rank = open_run(tmp_path).ranks[0]
    assert rank.updates["update"].tolist() == [4, 8]
    assert rank.episodes.num_rows == 10
    assert rank.attributes["thinning"] == 4


def test_file_without_sketches(tmp_path):
    with RankWriter(tmp_path / "rank-0000.h5", rank=0) as writer:
        assert writer.position() == rows(0)
    assert open_run(tmp_path).ranks[0].sketches.num_rows == 0


def test_sketch_values_are_copied(tmp_path):
    values = np.ones(8)
    with RankWriter(tmp_path / "rank-0000.h5", rank=0, sketch=SKETCH) as writer:
        writer.write_sketch(1, 0.0, values)
        values[:] = 2
    assert (open_run(tmp_path).ranks[0].sketches["value"] == 1).all()


def test_another_process_reads_while_the_file_is_written(tmp_path):
    writer = start("endless", tmp_path / "rank-0000.h5")
    try:
        assert writer.stdout is not None
        writer.stdout.readline()
        seen = [assert_whole(tmp_path) for _ in range(30)]
    finally:
        writer.kill()
        writer.communicate()
    for before, after in itertools.pairwise(seen):
        assert all(a <= b for a, b in zip(before, after, strict=True))
    assert seen[-1] > seen[0]


@pytest.mark.parametrize("moment", range(8))
def test_kill_at_any_moment_leaves_all_that_was_flushed(tmp_path, moment):
    writer = start("endless", tmp_path / "rank-0000.h5")
    assert writer.stdout is not None
    writer.stdout.readline()
    time.sleep(random.Random(moment).uniform(0, 0.2))
    writer.send_signal(signal.SIGKILL)
    announced = writer.communicate()[0].split()
    committed = min(assert_whole(tmp_path))
    assert committed >= int(announced[-1] if announced else 3)
    with pytest.raises(OSError, match="already open"):
        h5py.File(tmp_path / "rank-0000.h5", "r")
    # And the killed file can be resumed, without gap and without a doubled row.
    keep = random.Random(moment).randint(0, committed)
    with resume(tmp_path / "rank-0000.h5", rows(keep)) as resumed:
        for update in range(keep + 1, keep + 5):
            write_row(resumed, update)
    assert assert_whole(tmp_path) == rows(keep + 4)


def test_resume_drops_what_lies_past_the_checkpoint_and_records_it(tmp_path):
    path = tmp_path / "rank-0000.h5"
    write_rows(path, 100)
    with resume(path, rows(60), attributes={"hostname": "b"}) as writer:
        assert writer.position() == rows(60)
    assert assert_whole(tmp_path) == rows(60)
    with h5py.File(path) as file:
        for name in ("updates", "episodes", "sketch"):
            for column in TABLES[name]:
                assert len(file[name][column.name]) == 60
    with resume(path, rows(50)):
        pass
    rank = open_run(tmp_path).ranks[0]
    assert rank.restarts["restart"].tolist() == [1, 2]
    assert rank.restarts["update"].tolist() == [60, 50]
    assert rank.restarts["reason"].tolist() == ["test", "test"]
    assert rank.restarts["weights_restarted"].tolist() == [1, 1]
    assert rank.restarts["wall_clock"][0].endswith("+00:00")
    assert rank.attributes["hostname"] == "b"


def test_tables_may_be_cut_at_different_rows(tmp_path):
    path = tmp_path / "rank-0000.h5"
    write_rows(path, 10)
    with resume(path, Position(7, 2, 0)) as writer:
        writer.write_episode(episodic_return=1, length=1, env_steps=1, time_s=1, simulator=0)
    rank = open_run(tmp_path).ranks[0]
    assert (rank.updates.num_rows, rank.episodes.num_rows, rank.sketches.num_rows) == (7, 3, 0)
    assert rank.episodes["episode"].tolist() == [1, 2, 3]


@pytest.mark.parametrize("stride", [32, pytest.param(16, marks=pytest.mark.slow)])
def test_kill_in_the_middle_of_a_resume_loses_nothing(tmp_path, stride):
    path = tmp_path / "rank-0000.h5"
    write_rows(path, 100)
    original = path.read_bytes()
    num_calls = int(start("resume", path, 0).communicate()[0])
    assert num_calls > 60
    outcomes = set()
    for fatal in [*range(1, num_calls - 8, stride), *range(num_calls - 8, num_calls + 1)]:
        path.write_bytes(original)
        process = start("resume", path, fatal)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        outcomes.add(assert_whole(tmp_path))
        with resume(path, rows(50)):
            pass
        assert assert_whole(tmp_path) == rows(50)
    assert outcomes == {rows(100), rows(50)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resume_at": Position(11, 0, 0)}, "updates has 10 rows, the checkpoint counts 11"),
        ({"resume_at": Position(0, 0, 99)}, "sketch has 10 rows, the checkpoint counts 99"),
        ({"thinning": 2}, "thinning is 1, the job now asks for 2"),
        ({"sketch": None}, "holds sketches, the job now asks for none"),
        ({"sketch": Sketch(16, 100)}, "sketches of size 8, the job now asks for 16"),
    ],
)
def test_a_resume_that_does_not_fit_says_so_and_changes_nothing(tmp_path, changes, message):
    path = tmp_path / "rank-0000.h5"
    write_rows(path, 10)
    with pytest.raises(ResultsError, match=message):
        resume(path, rows(5), **changes)
    assert assert_whole(tmp_path) == rows(10)
    assert [each.name for each in tmp_path.iterdir()] == ["rank-0000.h5"]


def test_a_new_file_replaces_none(tmp_path):
    path = tmp_path / "rank-0000.h5"
    write_rows(path, 10)
    with pytest.raises(ResultsError, match="exists already"):
        RankWriter(path, rank=0)
    assert assert_whole(tmp_path) == rows(10)


def test_resume_without_a_file_says_so(tmp_path):
    with pytest.raises(ResultsError, match="no such file"):
        resume(tmp_path / "rank-0000.h5", rows(0))
    assert list(tmp_path.iterdir()) == []


def test_close_flushes_and_may_be_repeated(tmp_path):
    writer = RankWriter(tmp_path / "rank-0000.h5", rank=0, sketch=SKETCH)
    write_row(writer, 1)
    writer.close()
    writer.close()
    assert assert_whole(tmp_path) == rows(1)


def test_a_flush_writes_chunks_that_are_about_as_long_as_what_comes_between_two(tmp_path) -> None:
    def written_bytes() -> int:
        lines = Path("/proc/self/io").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("wchar:"))

    each = []
    with RankWriter(tmp_path / "rank-0000.h5", rank=0) as writer:
        for update in range(1, 40 * 30 + 1):
            n = float(update)
            numbers = dict.fromkeys(UpdateRow._fields, n)
            writer.write_update(UpdateRow(**{**numbers, "update": update}))
            writer.write_episode(episodic_return=n, length=1, env_steps=update, time_s=n, simulator=0)
            if update % 40 == 0:
                before = written_bytes()
                writer.flush()
                each.append(written_bytes() - before)
    # Two chunks a column, were one always to end; with 1,024 rows a chunk it was twice as much.
    assert np.mean(each[1:]) < 2 * 256 * 8 * (len(UpdateRow._fields) + 6)


def test_all_ranks_together_flush_at_a_bounded_rate() -> None:
    assert [flush_period_s(num_ranks) for num_ranks in (1, 256, 1024, 100_000)] == [2, 2, 8, 30]


def test_a_file_that_is_renamed_or_replaced_is_no_longer_in_place(tmp_path) -> None:
    path = tmp_path / "rank-0000.h5"
    with RankWriter(path, rank=0, sketch=SKETCH) as writer:
        assert writer.is_in_place
        path.rename(tmp_path / "elsewhere.h5")
        assert not writer.is_in_place
        path.write_bytes((tmp_path / "elsewhere.h5").read_bytes())
        assert not writer.is_in_place


def test_a_disk_that_is_full_at_the_start_is_an_error_of_the_system_and_leaves_nothing(tmp_path) -> None:
    path = tmp_path / "rank-0000.h5"
    program = f"""
import resource
from pathlib import Path
from galampi.results import RankWriter
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    RankWriter(Path({str(path)!r}), rank=0, sketch=None)
except OSError as error:
    print(error.strerror)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "File too large\n", "")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("room_kib", [300, 1000, 3000])
@pytest.mark.parametrize("is_checked", [True, False])
def test_a_disk_that_is_full_at_a_resume_leaves_the_old_file_alone(tmp_path, room_kib, is_checked) -> None:
    """Whether it is found out before, as it must be elsewhere than on Linux, or on the way."""
    path = tmp_path / "rank-0000.h5"
    position = write_rows(tmp_path / "whole.h5", 500)
    size_kib = (tmp_path / "whole.h5").stat().st_size >> 10
    assert size_kib > 3000
    check = "del os.memfd_create" if is_checked else ""
    program = f"""
import gc
import os
import shutil
from pathlib import Path
from galampi.results import Position, RankWriter, Restart, Sketch
{check}
path = Path({str(path)!r})
shutil.move({str(tmp_path / "whole.h5")!r}, path)
before = path.read_bytes()
restart = Restart(update=500, time_s=500.0, reason="", weights_restarted=True)
try:
    RankWriter(path, rank=0, sketch=Sketch(8, 100), resume_at=Position(*{tuple(position)}), restart=restart)
except OSError as error:
    print(error.strerror)
gc.collect()
print(os.listdir(path.parent), path.read_bytes() == before)
"""
    # What is moved into the folder goes into what is mounted there.
    (tmp_path / "disk").mkdir()
    program = program.replace(str(path), str(tmp_path / "disk/rank-0000.h5"))
    size = f"size={size_kib + room_kib}k"
    mount = f'mount -t tmpfs -o {size} tmpfs {shlex.quote(str(tmp_path / "disk"))} && exec "$@"'
    command = ["unshare", "--map-root-user", "--mount", "sh", "-c", mount, "sh", sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.stderr.startswith(("unshare:", "mount:")):
        pytest.skip("no file systems may be mounted here")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "No space left on device\n['rank-0000.h5'] True\n"


def test_updates_of_a_rank_that_left_and_came_back_are_its_own(tmp_path) -> None:
    """The others had made 30 updates by then."""
    path = tmp_path / "rank-0000.h5"
    position = write_rows(path, 10)
    restart = Restart(update=30, time_s=40.0, reason="came back", weights_restarted=True)
    with RankWriter(path, rank=0, sketch=SKETCH, resume_at=position, restart=restart) as writer:
        for update in range(31, 36):
            write_row(writer, update)
    assert num_updates(open_run(tmp_path).ranks[0]) == 15
