"""A run that is followed: whoever was interrupted, TensorBoard shows every row once."""

import threading
from pathlib import Path

import pytest
from event_records import records

from galampi.analysis import mirror as mirrors
from galampi.analysis.mirror import RunMirror
from galampi.cli import run as run_command
from galampi.errors import ResultsError, UserError
from galampi.results import JobFile, Position, RankWriter, Restart, UpdateRow, open_run

pytest.importorskip("tensorboardX")


def write_rows(writer: RankWriter, updates, weight: float) -> None:
    """Write rows of updates, each with an episode and a reading of 10 W, all of one weight."""
    for update in updates:
        time_s, env_steps = float(update), 80 * update
        own = {"update": update, "env_steps": env_steps, "time_s": time_s, "weight": weight}
        writer.write_update(UpdateRow(**{**dict.fromkeys(UpdateRow.__annotations__, 0), **own}))
        writer.write_episode(episodic_return=weight, length=1, env_steps=80 * update, time_s=time_s, simulator=0)
        writer.write_energy(time_s, "node-1", {"package-0": 10 * time_s})
    writer.flush()


@pytest.fixture
def run(tmp_path) -> Path:
    JobFile.create(tmp_path / "run", {"job_toml": ""}, 1)
    return tmp_path / "run"


def resumed(run: Path, update: int) -> RankWriter:
    """Resume a run from a checkpoint after an update."""
    restart = Restart(update=update, time_s=float(update), reason="test", weights_restarted=True)
    return RankWriter(run / "rank-0000.h5", rank=0, resume_at=Position(update, update, 0), restart=restart)


def shown(run: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows, by tag: it reads files in the order of their names, and forgets what it is told to."""
    found: dict[str, list[tuple[int, float]]] = {}
    for path in sorted((run.parent / "logs/run/rank-0000").iterdir()):
        for event in records(path):
            if event.HasField("session_log"):
                found = {tag: [point for point in points if point[0] < event.step] for tag, points in found.items()}
            for value in event.summary.value:
                found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found


def assert_shown(run: Path) -> None:
    file = open_run(run).ranks[0]
    found = shown(run)
    for tag, table, column in (
        ("updates/weight", file.updates, "weight"),
        ("updates/update", file.updates, "update"),
        ("episodes/return", file.episodes, "return"),
    ):
        rows = table.read("env_steps", column)
        assert found[tag] == list(zip(rows["env_steps"].tolist(), rows[column].tolist(), strict=True))
    assert {value for _, value in found["energy/package-0_w"]} == {10.0}, sorted(found)


def test_new_rows_are_added(run) -> None:
    with RunMirror(open_run(run), run.parent / "logs") as mirror:
        assert mirror.look() == "running"
        with RankWriter(run / "rank-0000.h5", rank=0) as writer:
            for updates in (range(1, 4), range(4, 4), range(4, 9)):
                write_rows(writer, updates, 0.5)
                mirror.look()
                assert_shown(run)
        JobFile.set_status(run, "finished")
        assert mirror.look() == "finished"
        # Eight rows of two tables, and seven stretches between readings.
        assert mirror.num_events == 8 + 8 + 7


@pytest.mark.parametrize("kept", [True, False])
def test_a_mirror_that_was_ended_goes_on(run, kept) -> None:
    """Also where it could not note what it had written last."""
    state = run.parent / "logs/run/mirror.json"
    with RankWriter(run / "rank-0000.h5", rank=0) as writer:
        write_rows(writer, range(1, 4), 0.5)
        with RunMirror(open_run(run), run.parent / "logs") as mirror:
            mirror.look()
            noted = state.read_text()
            write_rows(writer, range(4, 7), 0.5)
            mirror.look()
        if not kept:
            state.write_text(noted)
        write_rows(writer, range(7, 9), 0.5)
    with RunMirror(open_run(run), run.parent / "logs") as mirror:
        mirror.look()
    assert_shown(run)


@pytest.mark.parametrize("followed", [True, False])
def test_a_run_that_is_resumed(run, followed) -> None:
    """While it is followed, and while it is not: what was after the checkpoint is forgotten."""
    with RankWriter(run / "rank-0000.h5", rank=0) as writer:
        write_rows(writer, range(1, 9), 0.5)
    mirror = RunMirror(open_run(run), run.parent / "logs")
    mirror.look()
    if not followed:
        mirror.__exit__()
    for update in (6, 4):
        with resumed(run, update) as writer:
            write_rows(writer, range(update + 1, 12), 1.0 + update)
    if not followed:
        mirror = RunMirror(open_run(run), run.parent / "logs")
    with mirror:
        mirror.look()
    assert_shown(run)
    assert [value for _, value in shown(run)["updates/weight"]] == [0.5] * 4 + [5.0] * 7


def test_a_run_that_is_begun_anew(run) -> None:
    with RunMirror(open_run(run), run.parent / "logs") as mirror:
        for weight, last in ((0.5, 9), (2.0, 4)):
            with RankWriter(run / "rank-0000.h5", rank=0) as writer:
                write_rows(writer, range(1, last), weight)
            mirror.look()
            assert_shown(run)
            (run / "rank-0000.h5").unlink()


def test_files_that_are_being_replaced(run, monkeypatch) -> None:
    with RankWriter(run / "rank-0000.h5", rank=0) as writer:
        write_rows(writer, range(1, 4), 0.5)
    with RunMirror(open_run(run), run.parent / "logs") as mirror:
        whole = (run / "rank-0000.h5").read_bytes()
        (run / "rank-0000.h5").write_bytes(whole[:100])
        mirror.look()
        (run / "rank-0000.h5").write_bytes(whole)
        mirror.look()
        assert_shown(run)
        monkeypatch.setattr(mirrors, "_GIVE_UP_AFTER_S", 0.0)
        (run / "rank-0000.h5").write_bytes(whole[:100])
        with pytest.raises(ResultsError):
            mirror.look()


def test_folders_that_will_not_do(run) -> None:
    logs = run.parent / "logs"
    with RunMirror(open_run(run), logs) as mirror:
        with pytest.raises(UserError, match="logs/run: is being written by another process"):
            RunMirror(open_run(run), logs)
        mirror.look()
    (run.parent / "exported/run/rank-0000").mkdir(parents=True)
    with pytest.raises(UserError, match="exported/run: holds events already"):
        RunMirror(open_run(run), run.parent / "exported")
    (run.parent / "file").touch()
    with pytest.raises(UserError, match="file/run: cannot be written: Not a directory"):
        RunMirror(open_run(run), run.parent / "file")


def test_the_command_ends_with_the_run(run, monkeypatch, capsys) -> None:
    monkeypatch.setattr(mirrors, "_PERIOD_S", 0.01)
    with RankWriter(run / "rank-0000.h5", rank=0) as writer:
        write_rows(writer, range(1, 4), 0.5)
    threading.Timer(0.2, JobFile.set_status, (run, "finished")).start()
    assert run_command(["mirror", str(run), "--tensorboard", str(run.parent / "logs")]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{run}: {status}, 8 events so far" for status in ("running", "finished")
    ]
    assert_shown(run)
