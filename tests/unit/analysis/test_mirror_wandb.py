"""wandb alone: what it has not uploaded, what it keeps in files, and the real one with a server."""

import json
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from followed_runs import new_run, resumed, write_rows
from lasting_places import WandbPlaces, curves, of, wandb_records
from lasting_places import run as run
from lasting_places import wandb_places as wandb_places
from wandb_server import wandb_server

from galampi.analysis.mirror.following import RunMirror
from galampi.analysis.mirror.wandb import WandbProject
from galampi.errors import UserError
from galampi.results import JobFile, RankWriter, open_run


@pytest.mark.parametrize(
    ("arrived", "num_again"), [((99, 99), 0), ((99, 20), 3), ((9, 26), 18), ((8, 8), 0), ((0, 20), 20)]
)
def test_what_wandb_has_not_uploaded_is_sent_again(run, wandb_places, arrived, num_again) -> None:
    """Two mirrors are killed after two looks each, the first ones of 8 and 9 rows, and so many rows have arrived."""
    places = wandb_places
    places.wandb.is_offline = False
    with RankWriter(run / "rank-0000.h5", rank=0) as writer:
        for number, num_arrived in enumerate(arrived):
            with places.open(run) as mirror:
                for first in (1, 4):
                    write_rows(writer, range(6 * number + first, 6 * number + first + 3), 0.5)
                    mirror.look()
                (noted,) = places.folder.glob("wandb/galampi/**/mirror.json")
                text = noted.read_text()
            noted.write_text(text)
            (there,) = places.wandb.runs.values()
            del there.rows[num_arrived:]
    with places.open(run):
        pass  # It leaves before it looks.
    with places.open(run) as mirror:
        mirror.look()
        assert mirror.look() == "running"
    found = curves(there.rows)
    for tag in ("updates/policy_loss", "updates/weight", "episodes/return", "episodes/length"):
        assert sorted(set(found[tag])) == of(run, tag), tag
    rank = open_run(run).ranks[0]
    num_rows = rank.updates.num_rows + rank.episodes.num_rows + rank.energy.num_rows - 1
    assert len({str(row) for row in there.rows}) == num_rows
    assert len(there.rows) - num_rows == num_again


def assert_whole(places, run: Path, num_again: int = 0) -> None:
    """All rows of all ranks are in wandb, and so many of them once more."""
    rows = [row for there in places.wandb.runs.values() for row in there.rows]
    for rank, there in enumerate(places.wandb.runs.values()):
        for tag in ("updates/policy_loss", "updates/weight", "episodes/return", "episodes/length"):
            assert sorted(set(curves(there.rows)[tag])) == of(run, tag, rank), tag
    assert len(rows) - sum(len({str(row) for row in there.rows}) for there in places.wandb.runs.values()) == num_again


@pytest.fixture
def two_ranks(tmp_path) -> Path:
    run = new_run(tmp_path / "runs/two", num_ranks=2)
    for rank in range(2):
        with RankWriter(run / f"rank-{rank:04}.h5", rank=rank) as writer:
            write_rows(writer, range(1, 4), 0.5)
    return run


@pytest.mark.parametrize("how", ["refused", "fewer ranks"])
def test_a_rank_that_was_not_asked_is_asked_by_the_next_mirror(two_ranks, wandb_places, how) -> None:
    places = wandb_places
    places.wandb.is_offline = False
    places.kill(two_ranks)
    for there in places.wandb.runs.values():
        del there.rows[2:]
    if how == "refused":
        places.wandb.refused_id = "-0001"
        with pytest.raises(UserError, match="--wandb project:"), places.open(two_ranks) as mirror:
            mirror.look()
        places.wandb.refused_id = ""
    else:
        JobFile.set_status(two_ranks, "finished")
        with places.open(two_ranks, num_ranks=1) as mirror:
            mirror.look()
    with places.open(two_ranks) as mirror:
        mirror.look()
    assert_whole(places, two_ranks, 2 + 2)


@pytest.mark.parametrize("num_lost", [1, 5, 9])
def test_more_may_have_arrived_than_was_noted(run, wandb_places, num_lost) -> None:
    """A mirror was killed before its first look had ended, so all is there twice; then the next one is."""
    places = wandb_places
    places.wandb.is_offline = False
    with RankWriter(run / "rank-0000.h5", rank=0) as writer:
        write_rows(writer, range(1, 4), 0.5)
        places.kill(run)
        (path,) = places.folder.glob("wandb/galampi/**/mirror.json")
        path.write_text(json.dumps(json.loads(path.read_text()) | {"ranks": {}, "unsure": {}}))
        places.kill(run, before=lambda: write_rows(writer, range(4, 7), 0.5))
        (there,) = places.wandb.runs.values()
        del there.rows[-num_lost:]
    with places.open(run) as mirror:
        mirror.look()
    assert_whole(places, run, 8 + 9 - num_lost)


def test_ranks_that_have_ended_well_are_not_sent_again(two_ranks, wandb_places) -> None:
    places = wandb_places
    with places.open(two_ranks) as mirror:
        mirror.look()
    with places.open(two_ranks) as mirror:
        for more in (range(4, 6), range(6, 7)):
            with resumed(two_ranks, more[0] - 1) as writer:
                write_rows(writer, more, 0.5)
            mirror.look()
    with places.open(two_ranks, num_ranks=1) as mirror:
        mirror.look()
    with places.open(two_ranks) as mirror:
        mirror.look()
        assert mirror.news() == []
    assert_whole(places, two_ranks)


def test_what_was_sent_online_is_asked_for_online(run, wandb_places) -> None:
    places = wandb_places
    places.wandb.is_offline = False
    with RankWriter(run / "rank-0000.h5", rank=0) as writer:
        write_rows(writer, range(1, 4), 0.5)
    places.kill(run)
    (there,) = places.wandb.runs.values()
    del there.rows[3:]
    places.wandb.is_offline = True
    with pytest.raises(UserError, match="a mirror that is online must ask first"), places.open(run) as mirror:
        mirror.look()
    assert len(there.rows) == 3
    places.wandb.is_offline = False
    with places.open(run) as mirror:
        mirror.look()
    assert_whole(places, run, 3)


def test_a_server_is_not_waited_for_once_more(run, two_ranks, wandb_places) -> None:
    """And what was sent is noted, though its upload was not waited for."""
    places = wandb_places
    places.wandb.is_offline = False
    with RankWriter(run / "rank-0000.h5", rank=0) as writer:
        write_rows(writer, range(1, 4), 0.5)
    places.wandb.takes_the_rest = False
    project = WandbProject("project")
    with pytest.raises(UserError, match="the server does not take what is left"), ExitStack() as stack:
        for each in (run, two_ranks):
            stack.enter_context(RunMirror(open_run(each), [project])).look()
    assert sorted(len(there.exit_codes) for there in places.wandb.runs.values()) == [0, 0, 1]
    places.wandb.takes_the_rest = True
    for each in (run, two_ranks):
        with places.open(each) as mirror:
            mirror.look()
            assert mirror.num_events == 0
    assert {tuple(there.exit_codes) for there in places.wandb.runs.values()} == {(255,), (255, 255)}


@pytest.mark.parametrize("status", ["running", "finished"])
def test_a_server_that_does_not_take_the_rest(run, wandb_places, status) -> None:
    places = wandb_places
    places.wandb.is_offline = False
    with RankWriter(run / "rank-0000.h5", rank=0) as writer:
        write_rows(writer, range(1, 4), 0.5)
    JobFile.set_status(run, status)
    places.wandb.takes_the_rest = False
    told = f"the server does not take what is left of {run}; the same command sends it"
    with pytest.raises(UserError, match=told), places.open(run) as mirror:
        mirror.look()
    (there,) = places.wandb.runs.values()
    del there.rows[1:]
    places.wandb.takes_the_rest = True
    for _ in range(2):
        with places.open(run) as mirror:
            mirror.look()
    assert sorted(set(curves(there.rows)["updates/weight"])) == of(run, "updates/weight")
    assert there.exit_codes == 2 * [{"running": 255, "finished": 0}[status]]


def test_wandb_in_files(run, tmp_path, monkeypatch) -> None:
    """What the real wandb keeps offline, over two starts of a mirror."""
    pytest.importorskip("wandb", reason="pip install 'galampi[mirror]'")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    with RankWriter(run / "rank-0000.h5", rank=0) as writer:
        for updates, status in ((range(1, 4), "running"), (range(4, 9), "finished")):
            write_rows(writer, updates, 0.5)
            JobFile.set_status(run, status)
            with WandbPlaces(tmp_path).open(run) as mirror:
                mirror.look()
                assert mirror.news() == [f"{run}: wandb: offline in {tmp_path}/wandb"]
    records = [wandb_records(path) for path in sorted(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))]
    assert len(records) == 2
    made = [record.run for part in records for record in part if record.HasField("run")]
    assert len({each.run_id for each in made}) == 1
    assert [(each.project, each.run_group, each.display_name, each.resume) for each in made] == [
        ("project", "run", "run/rank-0000", True)
    ] * 2
    assert [record.exit.exit_code for part in records for record in part if record.HasField("exit")] == [255, 0]
    rows = [
        {item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
        for part in records
        for record in part
        if record.HasField("history")
    ]
    shown = curves(rows)
    for tag in ("updates/weight", "episodes/return"):
        assert shown[tag] == of(run, tag)


def test_wandb_with_a_server(run, tmp_path, monkeypatch) -> None:
    """The real wandb, whose mirror is killed before it has uploaded all."""
    pytest.importorskip("wandb", reason="pip install 'galampi[mirror]'")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_API_KEY", 40 * "a")
    # A test before may have left a service of wandb, which outlives the mirror.
    for name in ("WANDB_MODE", "WANDB_SERVICE"):
        monkeypatch.delenv(name, raising=False)
    command = [sys.executable, "-m", "galampi", "mirror", str(run), "--wandb", "someone/project"]
    with RankWriter(run / "rank-0000.h5", rank=0) as writer, wandb_server() as (address, runs):
        monkeypatch.setenv("WANDB_BASE_URL", address)
        write_rows(writer, range(1, 4), 0.5)
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as killed:
            assert killed.stdout is not None
            assert any(line.endswith(": running, 8 events so far\n") for line in killed.stdout)
            killed.kill()
        ((name, there),) = runs.items()
        num_arrived = len(there.rows)
        write_rows(writer, range(4, 9), 0.5)
        JobFile.set_status(run, "finished")
        told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    assert list(runs) == [name]
    assert ("the last 8 rows are sent to wandb again" in told) == (num_arrived < 8)
    assert (there.fields["groupName"], there.fields["displayName"], there.exit_code) == ("run", "run/rank-0000", 0)
    rows = [{tag: value for tag, value in row.items() if tag[0] != "_"} for row in there.rows.values()]
    for tag in ("updates/weight", "episodes/return"):
        assert curves(rows)[tag] == of(run, tag)
    assert [row["_step"] for row in there.rows.values()] == list(range(8 + 8 + 7))
