"""What `watch` makes of files, without a terminal."""

import functools
import io
import math
import os
import re
import time

import pytest
from made_runs import make_run, shrink
from rich.console import Console

from galampi.analysis.watch import command
from galampi.analysis.watch import view as viewing
from galampi.analysis.watch.command import watch
from galampi.analysis.watch.picture import braille, picture, runs_picture
from galampi.analysis.watch.several import SeveralRuns
from galampi.analysis.watch.view import RunView
from galampi.errors import ResultsError
from galampi.results import JobFile, Position, RankWriter, Restart, Sketch


def drawn(view: RunView, width: int, height: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=False, legacy_windows=False)
    console.print(picture(view, width, height))
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def running_on(tmp_path_factory):
    @functools.cache
    def made(num_ranks: int):
        run = tmp_path_factory.mktemp("run")
        return make_run(run, num_ranks=num_ranks, num_updates=20, status="running", sketches=False)

    return made


@pytest.fixture(scope="module")
def thirty(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return [make_run(folder / f"run-{n}", num_updates=3, num_ranks=1, sketches=False) for n in range(30)]


@pytest.fixture
def running(tmp_path):
    return make_run(tmp_path / "run", status="running", settings={"total_env_steps": "64000"})


def test_a_view_tells_the_numbers_of_the_files(running):
    view = RunView(running)
    assert view.env_steps == 32_000
    assert view.env_steps_per_s == pytest.approx(1600)
    assert view.left_s == pytest.approx(20)
    assert view.silent == {}
    rank = view.ranks[1]
    assert (rank.hostname, rank.weight) == ("node-1", 0.5)
    assert rank.message_age_s == pytest.approx(0.1)
    assert rank.mean_return == pytest.approx(150.5, abs=0.5)
    assert 0.001 < rank.distance < 0.01
    line = view.line()
    assert "running  32,000 / 64,000 steps  1,600 steps/s  return 175" in line
    assert "left 20 s" in line
    assert view.effective_step == pytest.approx(0.9)
    assert "step 0.90" in line
    assert "effective step 0.90" in drawn(view, 100, 24)[0]


@pytest.mark.parametrize(("width", "height"), [(80, 24), (60, 15), (200, 60), (40, 12)])
@pytest.mark.parametrize(("num_ranks", "num_silent"), [(1, 0), (2, 0), (2, 1), (40, 0), (40, 30)])
def test_the_picture_fits_the_terminal(running_on, monkeypatch, width, height, num_ranks, num_silent):
    monkeypatch.setattr(RunView, "silent", {rank: f"rank {rank} silent for 35 s" for rank in range(num_silent)})
    lines = drawn(RunView(running_on(num_ranks)), width, height)
    assert len(lines) <= height
    assert max(len(line) for line in lines) <= width
    text = "\n".join(lines)
    assert "made" in lines[0]
    assert "q leaves" in lines[-1]
    assert "distance" in text
    # But for the first line and the title of the curve nothing is cut off.
    assert sum("\u2026" in line for line in lines) <= 2
    assert ("silent" in text) == (num_silent > 0)
    if num_ranks == 40 and height < 60:
        assert re.search(r"\+[23]\d", text)


def test_a_rank_that_stays_behind_is_named(tmp_path):
    run = make_run(tmp_path / "run", num_updates=400, status="running")
    (run / "rank-0001.h5").unlink()
    make_run(tmp_path / "short", num_updates=50, status="running")
    (tmp_path / "short" / "rank-0001.h5").rename(run / "rank-0001.h5")
    view = RunView(run)
    assert list(view.silent) == [1]
    assert view.silent[1] == "rank 1 on node-1 silent for 35 s"
    # Its speed of old is not counted.
    assert view.env_steps_per_s == pytest.approx(800)
    lines = drawn(view, 80, 24)
    assert any("rank 1 on node-1 silent for 35 s" in line for line in lines)
    assert "silent for 35 s" in view.line()


def test_files_that_no_longer_change_are_silent(running):
    old = time.time() - 100
    for path in running.glob("rank-*.h5"):
        os.utime(path, (old, old))
    assert list(RunView(running).silent) == [0, 1]
    assert RunView(running).left_s is None


def test_a_finished_run_is_not_silent(tmp_path):
    run = make_run(tmp_path / "run", num_updates=20)
    for path in run.glob("rank-*.h5"):
        os.utime(path, (0, 0))
    assert RunView(run).silent == {}


def test_a_rank_that_has_not_begun(running):
    (running / "rank-0001.h5").unlink()
    view = RunView(running)
    assert view.ranks[1].time_s is None
    assert view.env_steps == 16_000
    assert math.isnan(view.ranks[1].mean_return)
    drawn(view, 80, 24)


def test_only_what_is_new_is_read_and_a_resume_begins_again(tmp_path):
    run = make_run(tmp_path / "run", num_ranks=1, num_updates=50, status="running")
    view = RunView(run)
    assert len(view.ranks[0].returns) == 50
    kept = view.ranks[0].returns
    view.look()
    assert view.ranks[0].returns is kept
    assert len(kept) == 50
    restart = Restart(update=20, time_s=2.0, reason="test", weights_restarted=True)
    RankWriter(
        run / "rank-0000.h5", rank=0, sketch=Sketch(64, 500), resume_at=Position(20, 20, 2), restart=restart
    ).close()
    view.look()
    assert len(view.ranks[0].returns) == 20
    assert view.env_steps == 1600


def test_hostile_names_are_shown_as_text(tmp_path):
    hostile = "[bold]x[/bold] \x1b[31mred\x1b[2J\x07\u202e"
    settings = {"name": hostile.replace("/", "|")}
    view = RunView(make_run(tmp_path / "run", num_updates=20, settings=settings, hostname=hostile, status=hostile))
    text = "\n".join([*drawn(view, 200, 24), view.line()])
    for character in "\x1b\x07\u202e":
        assert character not in text
    assert r"[bold]x[|bold] \x1b[31mred\x1b[2J\x07\u202e" in text


def test_lines_without_a_terminal_end_with_the_run(tmp_path, capsys):
    watch([make_run(tmp_path / "run", num_updates=20)])
    assert capsys.readouterr().out.startswith("finished  3,200 / 250,000 steps  return ")


@pytest.fixture
def moments(monkeypatch):
    """Let no time pass: instead, what stands in this list happens each time `watch` would wait, one after the other."""
    happens = []
    monkeypatch.setattr(command.time, "sleep", lambda _: happens.pop(0)())
    return happens


def test_lines_go_on_while_a_run_may_be_resumed(tmp_path, capsys, moments):
    run = make_run(tmp_path / "run", num_updates=20, status="stopped")
    moments += [
        lambda: None,
        lambda: JobFile.set_status(run, "failed"),
        lambda: JobFile.set_status(run, "running"),
        lambda: JobFile.set_status(run, "finished"),
    ]
    watch([run])
    lines = capsys.readouterr().out.splitlines()
    # A second look at the stopped run says nothing new.
    assert [line.split()[0] for line in lines] == ["stopped", "failed", "running", "finished"]


def test_files_that_cannot_be_read_for_a_while_leave_the_view(running, capsys, moments):
    path = running / "rank-0001.h5"
    content = path.read_bytes()

    def finish():
        path.write_bytes(content)
        JobFile.set_status(running, "finished")

    moments += [lambda: path.write_bytes(content[:1000]), lambda: None, finish]
    watch([running])
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["running", "finished"]


def test_files_that_cannot_be_read_for_long_are_told(running, monkeypatch, moments):
    monkeypatch.setattr(viewing, "_GIVE_UP_AFTER_S", 0.0)
    path = running / "rank-0001.h5"
    moments += [lambda: path.write_bytes(path.read_bytes()[:1000])]
    with pytest.raises(ResultsError, match=r"rank-0001\.h5: no HDF5 file"):
        watch([running])


def test_ranks_that_have_left_count(tmp_path):
    run = make_run(tmp_path / "run", num_ranks=4, num_updates=20, status="running")
    view = RunView(run)
    before = view.env_steps, view.mean_return(), view.curve(10)
    shrink(run, 2)
    for each in (view, RunView(run)):
        each.look()
        assert len(each.ranks) == 2
        assert (each.env_steps, each.mean_return(), each.curve(10)) == before
        assert each.env_steps_per_s == pytest.approx(1600)
        assert "+2" not in "\n".join(drawn(each, 80, 24))


def test_a_distance_of_before_is_not_shown_as_one_of_now(running):
    view = RunView(running)
    assert view.ranks[0].distance > 0
    with RankWriter(running / "new.h5", rank=1, sketch=Sketch(64, 500)) as writer:
        writer.flush()
    (running / "new.h5").rename(running / "rank-0001.h5")
    view.look()
    assert all(math.isnan(rank.distance) for rank in view.ranks)


def test_a_rank_that_is_resumed_is_not_silent(tmp_path):
    run = make_run(tmp_path / "run", num_ranks=1, num_updates=20, status="running", sketches=False)
    os.utime(run / "rank-0000.h5", (0, 0))
    view = RunView(run)
    assert list(view.silent) == [0]
    restart = Restart(update=20, time_s=2.0, reason="test", weights_restarted=True)
    RankWriter(run / "rank-0000.h5", rank=0, resume_at=Position(20, 20, 0), restart=restart).close()
    view.look()
    assert view.silent == {}


def test_no_run(tmp_path):
    with pytest.raises(ResultsError, match="no run here"):
        watch([tmp_path])


def test_a_truncated_file_is_told_in_one_line(running):
    path = running / "rank-0001.h5"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ResultsError) as raised:
        watch([running])
    assert "\n" not in str(raised.value)


def test_braille():
    # Two values a character and four levels: the left dot at the bottom, the right at the top, joined.
    assert braille([0.0, 3.0], 1) == [chr(0x2800 + 0x40 + 0x08 + 0x10 + 0x20)]
    assert braille([1.0, math.nan, math.nan, 1.0], 2) == ["\u2800\u2800", "\u2801\u2808"]


def test_several_runs_are_rows(tmp_path):
    for name, status in (("a", "finished"), ("b", "running"), ("c", "stopped")):
        make_run(tmp_path / name, status=status, num_updates=20, settings={"total_env_steps": "6400"}, sketches=False)
    runs = SeveralRuns([tmp_path / name for name in ("a", "b", "c", "d")])
    assert runs.status == "running"
    assert runs.line().startswith("4 runs: 1 finished, 1 running, 1 stopped, 1 missing  9,600 steps  1,600 steps/s")
    console = Console(file=io.StringIO(), width=80, height=24, force_terminal=False)
    console.print(runs_picture(runs, 80, 24))
    lines = console.file.getvalue().splitlines()
    # What is on its way comes first.
    assert [line.split()[0] for line in lines[3:7]] == ["b", "c", "d", "a"]
    assert re.match(r"b +running +50% +1,600 +\S+ +2 s", lines[3])
    assert re.match(r"d +missing +- +- +- +-", lines[5])
    make_run(tmp_path / "d", status="finished", num_updates=20, sketches=False)
    runs.look_again()
    assert runs.state(tmp_path / "d") == "finished"


def test_of_several_runs_one_that_is_gone_is_no_longer_running(tmp_path, monkeypatch):
    monkeypatch.setattr(viewing, "_GIVE_UP_AFTER_S", 0.0)
    for name in ("a", "b"):
        make_run(tmp_path / name, status="running", num_updates=20, sketches=False)
    runs = SeveralRuns([tmp_path / "a", tmp_path / "b"])
    (tmp_path / "b").rename(tmp_path / "moved")
    runs.look_again()
    assert runs.line().startswith("2 runs: 1 running, 1 unreadable  6,400 steps  1,600 steps/s")
    (tmp_path / "moved").rename(tmp_path / "b")
    runs.look_again()
    assert runs.line().startswith("2 runs: 2 running")
    (tmp_path / "b").rename(tmp_path / "moved")
    JobFile.set_status(tmp_path / "a", "finished")
    with pytest.raises(ResultsError, match="b"):
        runs.look_again()


@pytest.mark.parametrize(("place", "num_updates"), [("another", 60), ("the same", 10)])
def test_episodes_of_a_file_that_was_replaced_are_forgotten(tmp_path, monkeypatch, place, num_updates):
    if place == "the same":  # As a disk gives it that was removed first.
        monkeypatch.setattr(viewing, "_place_of", lambda path: (0, 0))
    run = make_run(tmp_path / "run", num_updates=20, status="running", slope=5)
    view = RunView(run)
    run.rename(tmp_path / "before")
    make_run(run, num_updates=num_updates, status="running", slope=1)
    view.look()
    assert view.ranks[0].returns == RunView(run).ranks[0].returns
    assert len(view.ranks[0].returns) == num_updates


def test_a_file_that_goes_while_it_is_looked_at_ends_nothing(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run", num_updates=20, status="running")
    view = RunView(run)
    opened = viewing.open_run

    def gone_when_opened(folder):
        found = opened(folder)
        assert all(rank.exists for rank in found.all_ranks)
        (run / "rank-0001.h5").rename(tmp_path / "gone")
        return found

    monkeypatch.setattr(viewing, "open_run", gone_when_opened)
    view.look_again()
    assert view.env_steps == 2 * 20 * 80


@pytest.mark.parametrize("width", [1, 8, 9, 10, 11])
def test_a_pane_of_a_few_columns_ends_nothing(running, thirty, width):
    assert drawn(RunView(running), width, 12)
    console = Console(file=io.StringIO(), width=width, height=12, force_terminal=False)
    console.print(runs_picture(SeveralRuns(thirty), width, 12))
    assert console.file.getvalue()


@pytest.mark.parametrize(("width", "height"), [(80, 24), (60, 15), (200, 60), (40, 8)])
def test_the_picture_of_runs_fits_the_terminal(thirty, width, height):
    runs = SeveralRuns(thirty)
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=False)
    console.print(runs_picture(runs, width, height))
    lines = console.file.getvalue().splitlines()
    assert len(lines) <= height
    assert max(map(len, lines)) <= width
    assert runs.status == "finished"


def test_none_of_several_runs_is_there(tmp_path):
    with pytest.raises(ResultsError, match="no run here yet, nor in the 1 others"):
        watch([tmp_path / "a", tmp_path / "b"])


def test_a_job_that_is_to_end_by_the_clock_has_no_more_time_left(tmp_path):
    settings = {"total_env_steps": str(10**9), "max_time_s": "30"}
    make_run(tmp_path / "run", status="running", num_updates=100, settings=settings, sketches=False)
    assert viewing.RunView(tmp_path / "run").left_s == pytest.approx(20.0, abs=0.2)
