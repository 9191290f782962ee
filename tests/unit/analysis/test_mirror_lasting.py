"""A run that is followed to places that forget nothing: every row once, one value at each env step."""

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from followed_runs import new_run, resumed, write_episode, write_rows
from lasting_places import MlflowPlaces, WandbPlaces, import_mlflow, of
from lasting_places import places as places
from lasting_places import run as run
from lasting_places import wandb_places as wandb_places

from galampi.analysis.mirror import command
from galampi.analysis.mirror import mlflow as mlflow_place
from galampi.analysis.mirror.command import mirror
from galampi.cli import run as run_command
from galampi.errors import UserError
from galampi.results import JobFile, RankWriter, open_run


def assert_shown(places, run: Path, name: str = "run/rank-0000", rank: int = 0) -> None:
    found = places.shown()[name].curves
    for tag in ("updates/policy_loss", "updates/weight", "updates/update", "episodes/return", "episodes/length"):
        assert found[tag] == of(run, tag, rank), tag
    num_readings = open_run(run).ranks[rank].energy.num_rows
    assert [value for _, value in found["energy/package-0_w"]] == [10.0] * (num_readings - 1)


def test_new_rows_are_added(places, run) -> None:
    with places.open(run) as mirror:
        assert mirror.look() == "running"
        with RankWriter(run / "rank-0000.h5", rank=0) as writer:
            for updates in (range(1, 4), range(4, 4), range(4, 9)):
                write_rows(writer, updates, 0.5)
                mirror.look()
                assert_shown(places, run)
        assert mirror.num_events == 8 + 8 + 7
    assert "message_age_s" not in places.shown()["run/rank-0000"].settings


def test_episodes_of_the_same_env_steps(places, run) -> None:
    """Those that are written after others of the same step are not taken for these."""
    for updates in (range(1, 4), range(4, 6)):
        resume = (lambda: resumed(run, 3)) if updates[0] > 1 else (lambda: RankWriter(run / "rank-0000.h5", rank=0))
        with resume() as writer:
            write_rows(writer, updates, 0.5)
            for _ in range(2):
                with places.open(run) as mirror:
                    mirror.look()
                for _ in range(2):
                    write_episode(writer, updates[-1], 0.5, float(updates[-1]))
                writer.flush()
    with places.open(run) as mirror:
        mirror.look()
    found = places.shown()["run/rank-0000"].curves["episodes/return"]
    # The resume cut the two episodes after the first of update 3 away; they stay here.
    assert [step for step, _ in found] == [80, 160, 240, 240, 240, 320, *[400] * 5]


@pytest.mark.parametrize("kind", ["ended", "killed"])
def test_a_mirror_that_is_ended_goes_on(places, run, kind, tmp_path) -> None:
    with RankWriter(run / "rank-0000.h5", rank=0) as writer:
        write_rows(writer, range(1, 4), 0.5)
        with places.open(run) as mirror:
            mirror.look()
            noted = {path: path.read_text() for path in tmp_path.glob("wandb/galampi/**/mirror.json")}
            write_rows(writer, range(4, 7), 0.5)
            mirror.look()
        if kind == "killed":
            for path, text in noted.items():
                path.write_text(text)
        write_rows(writer, range(7, 9), 0.5)
    for _ in range(2):
        with places.open(run) as mirror:
            mirror.look()
    if kind == "killed" and places.what == "wandb":
        # Rows of a look that could not be noted are there twice, one on the other, and those that may not be written.
        found = places.shown()["run/rank-0000"].curves["updates/weight"]
        assert sorted(set(found)) == of(run, "updates/weight")
        assert len(found) == 8 + 6
    else:
        assert_shown(places, run)


@pytest.fixture
def _is_interruptible() -> Iterator[None]:
    """Whoever starts tests in the background of a shell lets them ignore SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_is_interruptible")
def test_a_mirror_that_is_interrupted_while_it_sends(places, run, monkeypatch) -> None:
    """Ctrl-C waits for whole rows."""
    with RankWriter(run / "rank-0000.h5", rank=0) as writer:
        write_rows(writer, range(1, 100), 0.5)
    monkeypatch.setattr(command.time, "sleep", lambda period_s: pytest.fail("it was not interrupted"))
    told: list[str] = []
    for interrupted_at in (1, 30, 5):
        with monkeypatch.context() as patched:
            places.interrupt(interrupted_at, patched)
            mirror([run], [places.place], tell=told.append)
        assert told[-1] == "stops: writes what is left; once more leaves at once"
    with places.open(run) as last:
        last.look()
    assert_shown(places, run)


@pytest.mark.parametrize("is_followed", [True, False])
def test_a_run_that_is_resumed(places, run, is_followed) -> None:
    """What was sent stays, what is done again is sent from there on, and the stretch is told of."""
    with RankWriter(run / "rank-0000.h5", rank=0) as writer:
        write_rows(writer, range(1, 9), 0.5)
    mirror, news = places.open(run), []
    mirror.look()
    news += mirror.news()
    for update in (6, 4):
        if not is_followed:
            mirror.__exit__()
            mirror = places.open(run)
        with resumed(run, update) as writer:
            write_rows(writer, range(update + 1, 8), 1.0 + update)
            mirror.look()
            news += mirror.news()
            write_rows(writer, range(8, 12 - update), 1.0 + update)
            if update == 4:
                write_rows(writer, range(8, 12), 1.0 + update)
        mirror.look()
    mirror.__exit__()
    found = places.shown()["run/rank-0000"]
    for tag in ("updates/weight", "episodes/return"):
        assert found.curves[tag] == [(80 * i, 0.5 if i < 9 else 5.0) for i in range(1, 12)]
    # Every reading: 8, then 1, then 7; the first has none before it, and where a restart goes back there is no power.
    assert len(found.curves["energy/package-0_w"]) == 7 + 0 + 6
    assert found.resumed == "env steps 320 to 640 are as they were before a resume"
    told = [line for line in news if "before a resume" in line]
    assert [line.split(": ")[-1] for line in told] == [
        f"env steps {at} to 640 are as they were before a resume in {places.what}" for at in (480, 320)
    ]


def test_a_run_that_is_resumed_at_its_last_row_goes_on(places, run) -> None:
    with RankWriter(run / "rank-0000.h5", rank=0) as writer:
        write_rows(writer, range(1, 9), 0.5)
    with places.open(run) as mirror:
        mirror.look()
        mirror.news()
        with resumed(run, 8) as writer:
            write_rows(writer, range(9, 12), 0.5)
        mirror.look()
        assert mirror.news() == []
    found = places.shown()["run/rank-0000"]
    assert found.curves["updates/weight"] == of(run, "updates/weight")
    assert found.resumed is None


@pytest.mark.parametrize("is_followed", [True, False])
def test_a_run_that_is_begun_anew(places, run, is_followed) -> None:
    """It gets a name of its own, and the one before stays as it was."""
    mirror = places.open(run)
    for number, (weight, last, start_s) in enumerate(((0.5, 9, 0.0), (2.0, 4, 0.25), (3.0, 12, 0.5))):
        with RankWriter(run / "rank-0000.h5", rank=0) as writer:
            write_rows(writer, range(1, last), weight, start_s)
        mirror.look()
        mirror.look()
        assert_shown(places, run, ("run", "run-2", "run-3")[number] + "/rank-0000")
        if not is_followed:
            mirror.__exit__()
            mirror = places.open(run)
        (run / "rank-0000.h5").unlink()
        mirror.look()
    mirror.__exit__()
    found = {name.split("/")[0]: len(each.curves["updates/weight"]) for name, each in places.shown().items()}
    assert found == {"run": 8, "run-2": 3, "run-3": 11}


def test_two_runs_of_the_same_name(places, run, tmp_path) -> None:
    other = new_run(tmp_path / "others/run")
    for path, weight in ((run, 0.5), (other, 2.0)):
        with RankWriter(path / "rank-0000.h5", rank=0) as writer:
            write_rows(writer, range(1, 4), weight)
    for _ in range(2):
        with places.open(run) as first, places.open(other) as second:
            first.look()
            second.look()
    assert_shown(places, run)
    assert_shown(places, other, "run-2/rank-0000")


def test_the_status_of_the_run_ends_it(places, run) -> None:
    """A run that was ended goes on where it is resumed, also by a mirror that came later."""
    told = []
    with RankWriter(run / "rank-0000.h5", rank=0) as writer:
        write_rows(writer, range(1, 4), 0.5)
    with places.open(run) as mirror:
        for status in ("running", "failed", "failed", "running", "stopped"):
            JobFile.set_status(run, status)
            mirror.look()
            told.append(places.shown()["run/rank-0000"].status)
    # wandb has nothing that runs without rows to come.
    assert told[1:] == ["failed", "failed", "failed" if places.what == "wandb" else "running", "killed"]
    JobFile.set_status(run, "finished")
    for _ in range(2):
        with places.open(run) as mirror:
            mirror.look()
    assert places.shown()["run/rank-0000"].status == "finished"
    assert_shown(places, run)


def test_the_settings_of_the_job(places, run) -> None:
    with RankWriter(run / "rank-0000.h5", rank=0) as writer:
        write_rows(writer, range(1, 4), 0.5)
    with places.open(run) as mirror:
        mirror.look()
    settings = places.shown()["run/rank-0000"].settings
    if places.what == "wandb":
        assert settings["learner"] == {"gamma": 0.99}
        assert settings["rank"] == 0
    else:
        assert settings == {"seed": "3", "learner.gamma": "0.99", "environment.kwargs.a b_": "1"}
        (parent,) = (each for each in places.runs() if "galampi.rank" not in each.data.tags)
        assert parent.info.run_name == "run"
        assert parent.data.params == settings


def test_each_rank_has_curves_of_its_own(places, tmp_path) -> None:
    run = new_run(tmp_path / "several", num_ranks=3)
    for rank in range(3):
        with RankWriter(run / f"rank-{rank:04}.h5", rank=rank) as writer:
            write_rows(writer, range(1, 4 + rank), 0.5 + rank)
    with places.open(run, num_ranks=2) as mirror:
        mirror.look()
    assert sorted(places.shown()) == ["several/rank-0000", "several/rank-0001"]
    with places.open(run) as mirror:
        mirror.look()
    for rank in range(3):
        assert_shown(places, run, f"several/rank-{rank:04}", rank)


def test_another_mirror_of_the_same_run_is_refused(places, run) -> None:
    with places.open(run), pytest.raises(UserError, match="another process"):
        places.open(run)


def test_what_will_not_do_is_told_in_a_line(run, tmp_path, monkeypatch) -> None:
    with RankWriter(run / "rank-0000.h5", rank=0) as writer:
        write_rows(writer, range(1, 4), 0.5)
    with pytest.raises(UserError, match="mirror needs a place: --tensorboard DIR, --wandb PROJECT or --mlflow URI"):
        run_command(["mirror", str(run)])
    for name in ("wandb", "mlflow"):
        with monkeypatch.context() as patched:
            patched.setitem(sys.modules, name, None)
            with pytest.raises(UserError, match=rf"--{name} needs {name}: pip install 'galampi\[mirror\]'"):
                run_command(["mirror", str(run), f"--{name}", "there"])
    places = WandbPlaces(tmp_path)
    monkeypatch.setitem(sys.modules, "wandb", places.wandb)
    (tmp_path / "file").touch()
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "file"))
    with pytest.raises(
        UserError, match="file/wandb/galampi/project/run: cannot be written: Not a directory; WANDB_DIR"
    ):
        places.open(run)
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    places.wandb.refused = "No API key configured.\nUse `wandb login`."
    with places.open(run) as mirror, pytest.raises(UserError, match="--wandb project: No API key configured"):
        mirror.look()
    places.wandb.refused = ""
    with places.open(run) as mirror:
        mirror.look()
    assert_shown(places, run)


def test_a_server_that_is_not_there(run, monkeypatch) -> None:
    import_mlflow(monkeypatch)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(UserError, match=r"^--mlflow http://127\.0\.0\.1:9: API request to .*$"):
        run_command(["mirror", str(run), "--mlflow", "http://127.0.0.1:9"])
    monkeypatch.setattr(mlflow_place, "find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"--mlflow sqlite:///a\.db: a data base needs the whole of mlflow: pip install"
    ):
        run_command(["mirror", str(run), "--mlflow", "sqlite:///a.db"])


def test_all_places_at_once(run, tmp_path, monkeypatch, capsys) -> None:
    pytest.importorskip("tensorboardX")
    import_mlflow(monkeypatch)
    places, files = WandbPlaces(tmp_path), MlflowPlaces(tmp_path)
    monkeypatch.setitem(sys.modules, "wandb", places.wandb)
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setattr(command.time, "sleep", lambda period_s: JobFile.set_status(run, "finished"))
    with RankWriter(run / "rank-0000.h5", rank=0) as writer:
        write_rows(writer, range(1, 4), 0.5)
    asked = ["--tensorboard", str(tmp_path / "logs"), "--wandb", "project", "--mlflow", files.uri]
    assert run_command(["mirror", str(run), *asked]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{run}: wandb: offline in {tmp_path}/wandb",
        f"{run}: mlflow: run run at {files.uri}",
        *(f"{run}: {status}, 24 events so far" for status in ("running", "finished")),
    ]
    assert list((tmp_path / "logs/run/rank-0000").iterdir())
    for each in (places, files):
        assert_shown(each, run)
        assert each.shown()["run/rank-0000"].status == "finished"
