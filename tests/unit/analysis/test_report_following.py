"""Reports that follow runs while they are trained."""

import json
import shutil
from contextlib import ExitStack

import pytest
from made_runs import make_run

pytest.importorskip("matplotlib", reason="not installed; `pip install galampi[report]` brings it")
pytest.importorskip("scipy", reason="not installed; `pip install galampi[report]` brings it")

from galampi.analysis.report import follow
from galampi.errors import ResultsError, UserError
from galampi.results import JobFile
from galampi.results.sole import sole_writer


def test_a_followed_run_is_reported_until_it_is_finished(no_pictures, tmp_path, monkeypatch) -> None:
    run = make_run(tmp_path / "run", status="running")
    pages, told = [], []

    def sleep(seconds: float) -> None:
        pages.append((tmp_path / "page/index.html").read_text())
        if len(pages) == 2:
            JobFile.set_status(run, "finished")

    monkeypatch.setattr("time.sleep", sleep)
    printed = follow([run], tmp_path / "page", tell=told.append)
    assert len(pages) == len(told) == 2
    assert all('http-equiv="refresh" content="30"' in page for page in pages)
    assert 'http-equiv="refresh"' not in (tmp_path / "page/index.html").read_text()
    assert printed.endswith(str(tmp_path / "page/index.html"))


def test_runs_that_begin_meanwhile_are_followed_too(no_pictures, tmp_path, monkeypatch) -> None:
    runs = [tmp_path / "1", tmp_path / "2"]
    make_run(runs[0], num_updates=20)
    told = []

    def sleep(seconds: float) -> None:
        if len(told) == 2:
            make_run(runs[1], num_updates=20, settings={"seed": "2"})

    monkeypatch.setattr("time.sleep", sleep)
    printed = follow(runs[:1], tmp_path / "page", tell=told.append, to_come=runs[1:])
    assert len(told) == 2
    assert json.loads((tmp_path / "page/summary.json").read_text())["jobs"][0]["seeds"] == [1, 2]
    assert 'http-equiv="refresh"' not in (tmp_path / "page/index.html").read_text()
    assert printed.endswith(str(tmp_path / "page/index.html"))


def test_the_page_of_runs_that_begin_stays_where_it_is(no_pictures, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = make_run(tmp_path / "1", num_updates=20)
    told = []
    monkeypatch.setattr("time.sleep", lambda seconds: make_run(tmp_path / "2", num_updates=20, settings={"seed": "2"}))
    follow([run], None, tell=told.append, to_come=[tmp_path / "2"])
    assert told[0].endswith("wrote report/index.html")
    assert not (run / "report").exists()


def test_a_run_whose_first_update_takes_long_is_waited_for(no_pictures, tmp_path, monkeypatch) -> None:
    run = make_run(tmp_path / "run", num_updates=0, status="running")
    told, now_s = [], [1000.0]

    def sleep(seconds: float) -> None:
        now_s[0] += seconds
        if now_s[0] > 1300:
            shutil.rmtree(run)
            make_run(run, num_updates=20)

    monkeypatch.setattr("time.monotonic", lambda: now_s[0])
    monkeypatch.setattr("time.sleep", sleep)
    assert follow([run], tmp_path / "page", tell=told.append).endswith("index.html")
    assert len(told) == 11 and all(line.endswith("no update yet") for line in told)


def test_a_followed_run_that_cannot_be_read_is_given_up_after_a_minute(no_pictures, tmp_path, monkeypatch) -> None:
    run = make_run(tmp_path / "run", status="running")
    (run / "rank-0001.h5").write_bytes(b"not HDF5")
    now_s = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now_s[0])
    monkeypatch.setattr("time.sleep", lambda seconds: now_s.__setitem__(0, now_s[0] + seconds))
    with pytest.raises(ResultsError, match=r"rank-0001\.h5"):
        follow([run], tmp_path / "page", tell=print)
    assert now_s[0] == 1090.0


def test_whoever_leaves_keeps_the_page(no_pictures, tmp_path, monkeypatch) -> None:
    run = make_run(tmp_path / "run", status="running")

    def leave(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("time.sleep", leave)
    assert follow([run], tmp_path / "page", tell=print) == "left; the page stays as it was written last"
    assert (tmp_path / "page/index.html").exists()


def test_what_hinders_a_report_on_the_way_may_pass(no_pictures, tmp_path, monkeypatch) -> None:
    """As a report of the same page by hand; what is wrong from the start does not."""
    run = make_run(tmp_path / "run", status="running")
    sleeps = []
    (tmp_path / "page").mkdir()
    with ExitStack() as other:

        def sleep(seconds: float) -> None:
            sleeps.append(seconds)
            if len(sleeps) == 1:
                other.enter_context(sole_writer(tmp_path / "page"))
            elif len(sleeps) == 2:
                other.close()
                JobFile.set_status(run, "finished")

        monkeypatch.setattr("time.sleep", sleep)
        with pytest.raises(UserError, match="is being written"), sole_writer(tmp_path / "page"):
            follow([run], tmp_path / "page", tell=[].append)
        assert not sleeps
        assert follow([run], tmp_path / "page", tell=[].append)
        assert len(sleeps) == 2
