"""A run that is followed: whoever was interrupted, TensorBoard shows every row once."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from event_records import records
from followed_runs import new_run, resumed, write_rows

from galampi.analysis.mirror import command, following
from galampi.analysis.mirror import rows as looked_at
from galampi.analysis.mirror.following import RunMirror
from galampi.analysis.mirror.tensorboard import TensorBoardPlace
from galampi.cli import run as run_command
from galampi.errors import ResultsError, UserError
from galampi.results import JobFile, RankWriter, open_run
from galampi.results.reader import Table

pytest.importorskip("tensorboardX")


def follow(run: Path, logs: Path | None = None) -> RunMirror:
    return RunMirror(open_run(run), [lambda found: TensorBoardPlace(found, logs or run.parent / "logs")])


@pytest.fixture
def run(tmp_path) -> Path:
    return new_run(tmp_path / "run")


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
    with follow(run) as mirror:
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
        with follow(run) as mirror:
            mirror.look()
            noted = state.read_text()
            write_rows(writer, range(4, 7), 0.5)
            mirror.look()
        if not kept:
            state.write_text(noted)
        write_rows(writer, range(7, 9), 0.5)
    with follow(run) as mirror:
        mirror.look()
    assert_shown(run)


@pytest.mark.parametrize("followed", [True, False])
def test_a_run_that_is_resumed(run, followed) -> None:
    """While it is followed, and while it is not: what was after the checkpoint is forgotten."""
    with RankWriter(run / "rank-0000.h5", rank=0) as writer:
        write_rows(writer, range(1, 9), 0.5)
    mirror = follow(run)
    mirror.look()
    if not followed:
        mirror.__exit__()
    for update in (6, 4):
        with resumed(run, update) as writer:
            write_rows(writer, range(update + 1, 12), 1.0 + update)
    if not followed:
        mirror = follow(run)
    with mirror:
        mirror.look()
    assert_shown(run)
    assert [value for _, value in shown(run)["updates/weight"]] == [0.5] * 4 + [5.0] * 7


def test_a_run_that_is_begun_anew(run) -> None:
    with follow(run) as mirror:
        for weight, last in ((0.5, 9), (2.0, 4)):
            with RankWriter(run / "rank-0000.h5", rank=0) as writer:
                write_rows(writer, range(1, last), weight)
            mirror.look()
            assert_shown(run)
            (run / "rank-0000.h5").unlink()


@pytest.mark.parametrize("noted", [True, False])
def test_a_run_that_is_begun_anew_while_it_is_not_followed(run, noted) -> None:
    """Its first row tells; a mirror that noted none goes on from where it was."""
    state = run.parent / "logs/run/mirror.json"
    for weight, start_s in ((0.5, 0.0), (2.0, 0.25)):
        with RankWriter(run / "rank-0000.h5", rank=0) as writer:
            write_rows(writer, range(1, 9), weight, start_s)
        with follow(run) as mirror:
            mirror.look()
        kept = json.loads(state.read_text())
        assert kept["ranks"] == {"0": [640, 0, 1.0 + start_s]}
        if not noted:
            kept["ranks"]["0"] = kept["ranks"]["0"][:2]
            state.write_text(json.dumps(kept))
        (run / "rank-0000.h5").rename(run / "before.h5")
    (run / "before.h5").rename(run / "rank-0000.h5")
    if noted:
        assert_shown(run)
    else:
        assert [value for _, value in shown(run)["updates/weight"]] == [0.5] * 7 + [2.0]


def test_files_that_are_being_replaced(run, monkeypatch) -> None:
    with RankWriter(run / "rank-0000.h5", rank=0) as writer:
        write_rows(writer, range(1, 4), 0.5)
    with follow(run) as mirror:
        whole = (run / "rank-0000.h5").read_bytes()
        (run / "rank-0000.h5").write_bytes(whole[:100])
        mirror.look()
        (run / "rank-0000.h5").write_bytes(whole)
        mirror.look()
        assert_shown(run)
        monkeypatch.setattr(following, "GIVE_UP_AFTER_S", 0.0)
        (run / "rank-0000.h5").write_bytes(whole[:100])
        with pytest.raises(ResultsError):
            mirror.look()


def test_two_runs_of_the_same_name_at_once(run) -> None:
    other = new_run(run.parent / "others/run")
    with follow(run) as first, follow(other, run.parent / "logs") as second:
        first.look()
        second.look()
    assert {path.parent.name for path in run.parent.glob("logs/*/mirror.json")} == {"run", "run-2"}


def test_folders_that_will_not_do(run) -> None:
    with follow(run) as mirror:
        with pytest.raises(UserError, match="logs/run: is being written by another process"):
            follow(run)
        mirror.look()
    (run.parent / "exported/run/rank-0000").mkdir(parents=True)
    with pytest.raises(UserError, match="exported/run: holds events already"):
        follow(run, run.parent / "exported")
    (run.parent / "file").touch()
    with pytest.raises(UserError, match="file/run: cannot be written: Not a directory"):
        follow(run, run.parent / "file")


def test_a_run_that_was_moved_is_the_one_it_was(run) -> None:
    with RankWriter(run / "rank-0000.h5", rank=0) as writer:
        write_rows(writer, range(1, 4), 0.5)
    with follow(run) as mirror:
        mirror.look()
    (run.parent / "archive").mkdir()
    moved = run.rename(run.parent / "archive/run")
    with follow(moved, run.parent / "logs") as mirror:
        mirror.look()
    assert [path.name for path in (run.parent / "logs").iterdir()] == ["run"]
    # A copy at the old place is another one, and so is a new run there.
    copy = shutil.copytree(moved, run)
    with follow(copy) as mirror:
        mirror.look()
    assert {path.name for path in (run.parent / "logs").iterdir()} == {"run", "run-2"}


@pytest.mark.parametrize("text", ["", '{"run', "[]", "{}", '{"run": 1, "ranks": {}}'])
def test_notes_that_are_damaged_are_told(run, text) -> None:
    with follow(run) as mirror:
        mirror.look()
    (run.parent / "logs/run/mirror.json").write_text(text)
    with pytest.raises(UserError, match=r"mirror\.json: damaged: it no longer tells what is here"):
        follow(run)


def test_a_run_that_is_given_twice_is_one(run, capsys) -> None:
    JobFile.set_status(run, "finished")
    (run.parent / "latest").symlink_to(run)
    words = ["mirror", str(run), str(run.parent / "latest"), str(run), "--tensorboard", str(run.parent / "logs")]
    assert run_command(words) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1
    assert [path.name for path in (run.parent / "logs").iterdir()] == ["run"]


def test_runs_of_a_sweep_are_followed_as_they_begin(tmp_path, monkeypatch, capsys) -> None:
    sweep = tmp_path / "sweep"
    (sweep / "jobs").mkdir(parents=True)
    for number, name in enumerate(("seed-0", "seed-1")):
        (sweep / "jobs" / f"{number}-{name}.toml").touch()
    with pytest.raises(UserError, match="none of its 2 runs has begun"):
        run_command(["mirror", str(sweep), "--tensorboard", str(tmp_path / "logs")])
    first = new_run(sweep / "seed-0")

    def sleep(period_s: float) -> None:
        if not (sweep / "seed-1").exists():
            new_run(sweep / "seed-1")
            return
        JobFile.set_status(first, "finished")
        JobFile.set_status(sweep / "seed-1", "finished")

    monkeypatch.setattr(command.time, "sleep", sleep)
    assert run_command(["mirror", str(sweep), "--tensorboard", str(tmp_path / "logs")]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0] == "1 of 2 runs have not begun; they are followed when they have"
    assert [line.partition(": ")[2][:8] for line in told[1:]] == ["running,", "running,", "finished", "finished"]
    assert {path.name for path in (tmp_path / "logs").iterdir()} == {"seed-0", "seed-1"}
    # As `SWEEP/*` has them, with the folder of its jobs.
    for command_name, *options in (["mirror", "--tensorboard", str(tmp_path / "logs")], ["watch"]):
        assert run_command([command_name, *map(str, sorted(sweep.iterdir())), *options]) == 0
        with pytest.raises(UserError, match="jobs: no run here"):
            run_command([command_name, str(sweep / "jobs"), *options])


@pytest.mark.parametrize("option", ["--tensorboard", "--wandb", "--mlflow"])
def test_a_variable_that_is_not_set_is_no_place(run, option) -> None:
    with pytest.raises(UserError, match=f"{option}: is empty"):
        run_command(["mirror", str(run), option, ""])


def test_the_command_ends_with_the_run(run, monkeypatch, capsys) -> None:
    monkeypatch.setattr(command.time, "sleep", lambda period_s: JobFile.set_status(run, "finished"))
    with RankWriter(run / "rank-0000.h5", rank=0) as writer:
        write_rows(writer, range(1, 4), 0.5)
    assert run_command(["mirror", str(run), "--tensorboard", str(run.parent / "logs")]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{run}: {status}, 8 events so far" for status in ("running", "finished")
    ]
    assert_shown(run)


def test_a_run_that_is_removed_ends_not_the_mirror_of_others(run, monkeypatch, capsys) -> None:
    other = new_run(run.parent / "other")
    monkeypatch.setattr(following, "GIVE_UP_AFTER_S", 0.0)
    moments = iter(range(10))

    def sleep(period_s: float) -> None:
        match next(moments):
            case 0:
                shutil.rmtree(other)
            case 1:
                with RankWriter(run / "rank-0000.h5", rank=0) as writer:
                    write_rows(writer, range(1, 4), 0.5)
            case 2:
                JobFile.set_status(run, "finished")

    monkeypatch.setattr(command.time, "sleep", sleep)
    with pytest.raises(ResultsError, match="other"):
        run_command(["mirror", str(run), str(other), "--tensorboard", str(run.parent / "logs")])
    told = capsys.readouterr().out
    assert "it is followed no more" in told and f"{run}: finished" in told
    assert_shown(run)


def test_a_long_run_is_not_read_anew_at_each_look(run, monkeypatch) -> None:
    monkeypatch.setattr(looked_at, "_TAIL_ROWS", 10)
    read, num_read = Table.read, []

    def reading(self, *names, start=0, stop=None):
        found = read(self, *names, start=start, stop=stop)
        if self.schema.name in looked_at.RankRows.tables:
            num_read.append(len(next(iter(found.values()))))
        return found

    monkeypatch.setattr(Table, "read", reading)
    with RankWriter(run / "rank-0000.h5", rank=0) as writer:
        write_rows(writer, range(1, 300), 0.5)
    with follow(run) as mirror:
        mirror.look()
        with resumed(run, 299) as writer:
            write_rows(writer, range(300, 303), 0.5)
        mirror.look()
        num_read.clear()
        mirror.look()
        assert max(num_read) <= 10
        assert_shown(run)


@pytest.mark.parametrize("step", [0, 79, 80, 81, 5 * 80, 296 * 80, 299 * 80, 299 * 80 + 1])
@pytest.mark.parametrize("tail", [4, 1000])
def test_rows_are_found_by_their_env_steps(run, monkeypatch, step, tail) -> None:
    monkeypatch.setattr(looked_at, "_TAIL_ROWS", tail)
    with RankWriter(run / "rank-0000.h5", rank=0) as writer:
        write_rows(writer, range(1, 300), 0.5)
    file = open_run(run).ranks[0]
    known = looked_at.RankRows(file)
    for side in ("left", "right"):
        assert known.first_row("updates", step, side) == np.searchsorted(file.updates["env_steps"], step, side)
    assert known.last_step("updates") == file.updates["env_steps"][-1]
    assert known.last_step("episodes") == file.episodes["env_steps"][-1] if known.num_rows("episodes") else 0
