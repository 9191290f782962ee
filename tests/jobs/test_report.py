"""Reports of real runs, and the page in a real browser."""

import json
import signal
import subprocess
import sys

import chromium
import numpy as np
import pytest
from launching import wait_for
from limits import DEADLOCK_S

from galampi.analysis.summary import RunReport
from galampi.job import dump_job, parse_job
from galampi.results import JobFile, RankWriter, UpdateRow, load_checkpoint, open_run
from galampi.results.schema import UPDATES

pytestmark = pytest.mark.one_mpi

pytest.importorskip("matplotlib", reason="not installed; `pip install galampi[report]` brings it")
pytest.importorskip("scipy", reason="not installed; `pip install galampi[report]` brings it")
NO_BROWSER = "chromium is not installed"
NUM_FIGURES = 14
"""Two of learning, twelve of the job."""


@pytest.fixture(scope="module")
def three_seeds(tmp_path_factory):
    """Train three seeds of one job on two ranks, and report them and the first alone."""
    folder = tmp_path_factory.mktemp("seeds")
    runs = [folder / str(seed) for seed in (1, 2, 3)]
    job = ["--environment.id", "CartPole-v1", "--name", "cart <b>&", "--total_env_steps", "40000", "--quiet"]
    job += ["--environment.num_envs", "4", "--record.sketch_every_s", "0.05"]
    for seed, out in enumerate(runs, 1):
        command = [sys.executable, "-m", "galampi", "train", *job, "--seed", str(seed), "--out", out]
        subprocess.run(["mpirun", "-n", "2", *command], check=True, timeout=DEADLOCK_S)
    for runs_of_report, out in ((runs, folder / "all"), (runs[:1], folder / "one")):
        command = [sys.executable, "-m", "galampi", "report", *runs_of_report, "--out", out]
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=DEADLOCK_S)
        assert done.stderr == ""
        assert str(out / "index.html") in done.stdout
    return folder


@pytest.mark.slow
def test_summary_of_two_ranks(three_seeds):
    summary = json.loads((three_seeds / "one" / "summary.json").read_text())
    (job,) = summary["jobs"]
    (run,) = job["runs"]
    files = open_run(three_seeds / "1")
    assert job["num_ranks"] == 2
    assert run["env_steps"] == sum(int(rank.updates["env_steps"][-1]) for rank in files.ranks)
    assert run["messages"]["sent"] == sum(int(rank.updates["sent"][-1]) for rank in files.ranks) > 0
    returns = np.concatenate([rank.episodes["return"] for rank in files.ranks])
    times = np.concatenate([rank.episodes["time_s"] for rank in files.ranks])
    assert run["final_return"] == pytest.approx(returns[np.argsort(times, kind="stable")][-100:].mean())
    assert 0 < run["distance"]["relative_max"] < 0.5
    bound = run["distance"]["bound"]
    assert bound["moments"] > 20
    assert bound["share_of_moments_within"] == 1
    # The sharper one comes so close that the sketches' error may count.
    assert bound["share_of_moments_within_sharp"] >= 0.99
    assert run["phase_shares"]["rest"] < 0.2
    energy = run["energy"]
    assert (energy["kwh"] is None) == (not energy["sources"])
    assert energy["kwh"] is not None or energy["reason"]
    # Every edge counts what the rank's totals say, as far as it was counted.
    for rank in files.ranks:
        assert rank.edges["hop"].tolist() == [1] * rank.sketches.num_rows
        assert rank.edges["sent"][-1] == rank.updates["sent"][rank.edges["update"][-1] - 1]


@pytest.mark.slow
def test_the_sharper_bound_is_sharp(three_seeds):
    report = RunReport(three_seeds / "1")
    stacked = np.linalg.norm(report.distance.to_mean[report.bound.moments], axis=1)
    # How many moments come near it depends on delays, so on what else the machine does; that some do, does not.
    assert (stacked / report.bound.sharp).max() > 0.7


@pytest.mark.parametrize(("ranks", "method"), [(3, "push-sum"), (2, "gala"), (3, "gala")])
@pytest.mark.slow
def test_the_bound_holds_for_other_exchanges(galampi, small_job, tmp_path, ranks, method):
    out = tmp_path / "run"
    settings = ("--total_env_steps", 20000, "--gossip.method", method)
    command = galampi("train", small_job, "--out", out, *settings, ranks=ranks)
    assert command.finish()[0] == 0
    bound = RunReport(out).summary()["distance"]["bound"]
    assert bound["share_of_moments_within"] == 1
    # Sketches of 64 values are off by 9 %.
    assert bound["share_of_moments_within_sharp"] >= 0.95


@pytest.mark.slow
def test_summary_of_three_seeds(three_seeds):
    summary = json.loads((three_seeds / "all" / "summary.json").read_text())
    (job,) = summary["jobs"]
    assert job["seeds"] == [1, 2, 3]
    finals = [run["final_return"] for run in job["runs"]]
    final = job["final_return"]
    assert final["iqm"] == pytest.approx(np.mean(finals))
    # Of three runs the interval reaches to the least and the greatest, but for rounding.
    assert final["low"] < final["iqm"] < final["high"]
    assert final["low"] == pytest.approx(min(finals))
    assert final["high"] == pytest.approx(max(finals))


@pytest.mark.slow
def test_runs_that_do_not_compare_are_refused(three_seeds, galampi, small_job, tmp_path):
    code, _, errors = galampi(
        "train", small_job, "--out", tmp_path / "run", "--environment.id", "Acrobot-v1", "--total_env_steps", 500
    ).finish()
    assert code == 0, errors
    code, _, errors = galampi("report", three_seeds / "1", tmp_path / "run", ranks=None).finish()
    assert code == 2
    assert errors.count("\n") == 1
    assert "environment.id is CartPole-v1 in" in errors


@pytest.mark.slow
def test_distances_of_sketches_are_those_of_checkpoints(galampi, small_job, tmp_path):
    out = tmp_path / "run"
    command = galampi(
        *("train", small_job, "--out", out, "--total_env_steps", 10**9, "--network.hidden_sizes", "[128, 128]"),
        *("--checkpoint.every_updates", 100, "--record.sketch_every_s", 1e-4, "--record.sketch_size", 1024),
        ranks=3,
    )
    paths = [out / "checkpoint" / f"rank-{rank:04d}.h5" for rank in range(3)]
    wait_for(lambda: all(path.exists() and load_checkpoint(path)["counters"]["update"] > 300 for path in paths))
    command.kill()
    run = open_run(out)
    exact, sketched = [], []
    for path, rank in zip(paths, run.ranks, strict=True):
        state = load_checkpoint(path)
        exact.append(state["learner"]["z"].astype(np.float64))
        (row,) = np.flatnonzero(rank.sketches["update"] == state["counters"]["update"])
        sketched.append(rank.sketches["value"][row].astype(np.float64))
    relative_error = 1 / np.sqrt(2 * 1024)
    for i, j in ((0, 1), (0, 2), (1, 2)):
        distance = np.linalg.norm(exact[i] - exact[j])
        assert np.linalg.norm(sketched[i] - sketched[j]) == pytest.approx(distance, rel=4 * relative_error)
    to_mean = np.linalg.norm(exact - np.mean(exact, axis=0), axis=1)
    estimate = np.linalg.norm(sketched - np.mean(sketched, axis=0), axis=1)
    np.testing.assert_allclose(estimate, to_mean, rtol=4 * relative_error)


@pytest.mark.skipif(chromium.BINARY is None, reason=NO_BROWSER)
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.slow
def test_the_page_in_a_browser(three_seeds, tmp_path, width, dark):
    page = three_seeds / "one" / "index.html"
    with chromium.Browser() as browser:
        browser.open(page, width=width, dark=dark)
        assert browser.complaints == []
        assert [url for url in browser.requests if not url.startswith("data:")] == [page.as_uri()]
        assert browser.evaluate("document.querySelectorAll('figure > svg').length") == NUM_FIGURES
        # Every picture is drawn with a size, and fits in the page.
        sizes = browser.evaluate(
            "[...document.querySelectorAll('figure > svg')].map(each => [each.getBoundingClientRect().width,"
            " each.getBoundingClientRect().height, each.querySelectorAll('path, use').length])"
        )
        assert min(size[0] for size in sizes) > 300
        assert min(size[1] for size in sizes) > 150
        assert min(size[2] for size in sizes) > 10
        assert browser.evaluate("document.documentElement.scrollWidth") <= width
        assert browser.evaluate("[...document.images].every(each => each.complete && each.naturalWidth > 0)")
        # The name of the job is text.
        assert browser.evaluate("document.querySelector('h1').textContent") == "cart <b>&"
        paper = browser.evaluate("getComputedStyle(document.body).backgroundColor")
        ink = browser.evaluate("getComputedStyle(document.querySelector('figure svg text, figure svg g')).color")
        assert (paper == "rgb(255, 255, 255)") != dark
        assert paper != ink
        browser.screenshot(tmp_path / "page.png")
        assert (tmp_path / "page.png").stat().st_size > 50_000


@pytest.mark.parametrize(
    ("arguments", "may_load", "said"),
    [
        (["report", "--help"], set(), "usage"),
        (["watch", "--help"], set(), "usage"),
        (["watch", "RUN"], set(), "finished"),
        (["report", "RUN"], {"matplotlib", "scipy"}, "index.html"),
    ],
)
def test_commands_of_a_login_node_load_neither_torch_nor_mpi(arguments, may_load, said, tmp_path):
    JobFile.create(tmp_path, {"job_toml": dump_job(parse_job("", "test"))}, 1)
    JobFile.set_status(tmp_path, "finished")
    with RankWriter(tmp_path / "rank-0000.h5", rank=0) as writer:
        for update in range(1, 30):
            writer.write_update(UpdateRow(**{column.name: update for column in UPDATES}))
            writer.write_episode(episodic_return=1.0, length=9, env_steps=update, time_s=float(update), simulator=0)
    command = [str(tmp_path) if word == "RUN" else word for word in arguments]
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['galampi', *{command!r}]\n"
        "try:\n    runpy.run_module('galampi', run_name='__main__')\n"
        "except SystemExit as end:\n    assert not end.code, end.code\n"
        "heavy = {'torch', 'mpi4py', 'gymnasium', 'ale_py', 'matplotlib', 'scipy', 'pandas'} & set(sys.modules)\n"
        f"assert heavy == {may_load!r}, heavy\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert said in ended.stdout


@pytest.mark.slow
def test_a_report_of_a_run_that_is_still_written(galampi, small_job, tmp_path):
    out = tmp_path / "run"
    command = galampi("train", small_job, "--out", out, "--total_env_steps", 10**9)
    wait_for(lambda: (out / "rank-0001.h5").exists() and open_run(out).ranks[1].updates.num_rows > 100)
    code, _, errors = galampi("report", out, ranks=None).finish()
    assert code == 0, errors
    summary = json.loads((out / "report" / "summary.json").read_text())
    assert summary["jobs"][0]["runs"][0]["status"] == "running"
    for process in command.ranks():
        process.send_signal(signal.SIGTERM)
    assert command.finish()[0] == 3
