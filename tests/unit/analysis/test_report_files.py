"""Reports of made-up runs: what belongs together, what is refused, what is written."""

import json
import re
import shutil
from pathlib import Path
from xml.dom import minidom

import h5py
import numpy as np
import pytest
from made_runs import make_run

pytest.importorskip("matplotlib", reason="not installed; `pip install galampi[report]` brings it")
pytest.importorskip("scipy", reason="not installed; `pip install galampi[report]` brings it")

from galampi.analysis.report import report
from galampi.analysis.statistics import settings_changed
from galampi.analysis.summary import RunReport
from galampi.cli import run as run_command
from galampi.errors import ResultsError, UserError
from galampi.results import Position, RankWriter, Restart, Sketch
from galampi.results.sole import sole_writer

HOSTILE = '<script>alert(1)</script> "quoted" & $x^2$ \x1b[31mred\x07 \u202eleft'
SUMMARY_OF_A_RUN = {
    "path",
    "status",
    "seed",
    "env_steps",
    "duration_s",
    "effective_step",
    "env_steps_per_s",
    "num_updates",
    "num_episodes",
    "final_return",
    "last_numbers",
    "num_failures",
    "messages",
    "message_age_s",
    "weight",
    "distance",
    "phase_shares",
    "energy",
}


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    """Report three seeds of one job and one run of another."""
    folder = tmp_path_factory.mktemp("seeds")
    runs = [make_run(folder / str(seed), settings={"seed": str(seed)}, slope=seed) for seed in (1, 2, 3)]
    energy = {0: {"package-0": 7.2e6, "package-0/dram": 3.6e6}}
    runs.append(
        make_run(folder / "ring", settings={"gossip.topology": "ring"}, num_ranks=3, energy_j=energy, unread="")
    )
    text = report(runs, folder / "out")
    return folder / "out", json.loads((folder / "out" / "summary.json").read_text()), text


def test_a_run_without_rows_is_left_out_and_told(tmp_path):
    runs = [make_run(tmp_path / str(seed), settings={"seed": str(seed)}) for seed in (1, 2)]
    begun = make_run(tmp_path / "3", settings={"seed": "3"}, num_updates=0)
    assert f"{begun}: holds no update yet; the report is of the others" in report([*runs, begun], tmp_path / "out")
    (job,) = json.loads((tmp_path / "out/summary.json").read_text())["jobs"]
    assert len(job["runs"]) == 2
    with pytest.raises(ResultsError, match="3: holds no update yet; nothing to report"):
        report([begun], tmp_path / "out")


def test_arguments_that_are_not_finite(tmp_path):
    settings = {"environment.kwargs": "{ a = [0.7, inf], b = nan }"}
    runs = [make_run(tmp_path / str(seed), settings={**settings, "seed": str(seed)}) for seed in (1, 2)]
    report(runs, tmp_path / "out")
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert len(summary["jobs"]) == 1
    assert summary["environment"]["kwargs"] == {"a": [0.7, "inf"], "b": "nan"}


def test_seeds_are_one_job(seeds):
    _, summary, text = seeds
    exponential, ring = summary["jobs"]
    assert exponential["label"] == "made: exponential, 2 ranks"
    assert ring["label"] == "made: ring, 3 ranks"
    assert exponential["seeds"] == [1, 2, 3]
    # Slopes 1, 2 and 3: the last hundred of two ranks' episodes are those of updates 151 to 200.
    finals = [run["final_return"] for run in exponential["runs"]]
    np.testing.assert_allclose(finals, [175.5, 351, 526.5], atol=1)
    final = exponential["final_return"]
    assert final["iqm"] == pytest.approx(np.mean(finals))
    assert (final["low"], final["high"]) == pytest.approx((min(finals), max(finals)))
    assert ring["final_return"]["low"] is None
    assert "made: exponential, 2 ranks" in text
    assert max(len(line) for line in text.splitlines()[:-1]) < 120


def test_summary_of_a_run(seeds):
    _, summary, _ = seeds
    run = summary["jobs"][0]["runs"][0]
    assert set(run) == SUMMARY_OF_A_RUN
    assert run["env_steps"] == 2 * 80 * 200
    assert run["env_steps_per_s"] == pytest.approx(1600)
    assert run["effective_step"] == pytest.approx(0.9)
    assert run["messages"] == {"sent": 400, "received": 398, "skipped": 0}
    assert run["message_age_s"]["median"] == pytest.approx(0.1)
    # Two ranks 0.1 sqrt(2) apart, each half of that from the mean, of a vector of norm sqrt(500).
    assert run["distance"]["mean"] == pytest.approx(0.1 / np.sqrt(2), rel=0.2)
    assert run["distance"]["relative_max"] == pytest.approx(run["distance"]["max"] / np.sqrt(500), rel=0.1)
    assert run["distance"]["bound"]["share_of_moments_within"] == 1
    assert run["phase_shares"]["env"] == pytest.approx(0.4)
    assert sum(run["phase_shares"].values()) == pytest.approx(1)


def test_energy_is_summed_or_null_with_a_reason(seeds):
    _, summary, _ = seeds
    exponential, ring = (job["runs"][0]["energy"] for job in summary["jobs"])
    assert exponential["kwh"] is None
    assert exponential["kwh_per_million_env_steps"] is None
    assert exponential["reason"] == "node-1: RAPL: no zones"
    assert ring["kwh"] == pytest.approx(3.0)
    assert ring["reason"] is None
    assert {source["source"]: source["kwh"] for source in ring["sources"]} == pytest.approx(
        {"package-0": 2.0, "package-0/dram": 1.0}
    )
    assert ring["kwh_per_million_env_steps"] == pytest.approx(3.0 / (3 * 80 * 200 / 1e6))


def test_figures_are_in_the_page_and_beside_it(seeds):
    out, _, _ = seeds
    page = (out / "index.html").read_text()
    names = sorted(path.stem for path in (out / "figures").glob("*.svg"))
    assert names == sorted(path.stem for path in (out / "figures").glob("*.png"))
    assert set(re.findall(r'<figure id="([^"]*)"', page)) == set(names)
    assert {"return-steps", "return-time", "job1-distance", "job1-messages", "job2-energy", "job2-pairs"} <= set(names)
    assert page.count("<figcaption>") == len(names)
    # Nothing is fetched from anywhere.
    assert not re.findall(r'(?:src|href)="(?!#|data:)[^"]*"', page)
    identifiers = re.findall(r'\bid="([^"]*)"', page)
    assert len(identifiers) == len(set(identifiers))


def test_hostile_names_are_shown_as_text(tmp_path):
    settings = {"name": HOSTILE.replace("/", "|")}
    out = make_run(
        tmp_path / "run",
        settings=settings,
        hostname=HOSTILE,
        attributes={"device": HOSTILE},
        status=HOSTILE,
        num_updates=100,
        energy_j={0: {HOSTILE: 3.6e6, "package-0": 3.6e6}},
    )
    other = make_run(tmp_path / "other", settings={**settings, "seed": "2"}, num_ranks=3, num_updates=40)
    text = report([out, other], tmp_path / "report")
    page = (tmp_path / "report" / "index.html").read_text()
    assert "<script" not in page
    for character in "\x1b\x07\u202e":
        assert character not in page
        assert character not in text
    assert r"\x1b[31mred\x07 \u202eleft" in page
    assert "&lt;script&gt;" in page
    for path in (tmp_path / "report" / "figures").glob("*.svg"):
        # Labels are written into them as comments.
        minidom.parse(str(path))


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("environment.frame_skip", "2", "environment.frame_skip is 4 in"),
        ("environment.repeat_action_probability", "0.25", "environment.repeat_action_probability is 0.0 in"),
        ("environment.id", "ALE/Qbert-v5", "environment.id is ALE/Pong-v5 in"),
    ],
)
def test_other_environments_and_units_are_refused(no_pictures, tmp_path, key, value, line):
    game = {"environment.id": "ALE/Pong-v5"}
    one = make_run(tmp_path / "one", num_updates=30, settings=game)
    two = make_run(tmp_path / "two", num_updates=30, settings={**game, key: value})
    with pytest.raises(UserError, match=re.escape(line)) as raised:
        report([one, two], tmp_path / "out")
    assert "--mixed" in str(raised.value)
    assert not (tmp_path / "out").exists()
    report([one, two], tmp_path / "out", mixed=True)
    assert (tmp_path / "out" / "index.html").exists()


def test_jobs_whose_tables_hold_other_settings_compare(no_pictures, tmp_path):
    runs = [
        make_run(tmp_path / name, num_updates=30, settings={"environment.kwargs": f"{{ {name} = 1 }}"})
        for name in ("sutton_barto_reward", "screen")
    ]
    told = report(runs, tmp_path / "out", mixed=True)
    assert "made: sutton_barto_reward 1" in told
    assert "made: screen 1" in told


def test_seeds_that_have_not_finished_are_told(no_pictures, tmp_path):
    settings = {"total_env_steps": "4800"}
    runs = [make_run(tmp_path / str(seed), num_updates=30, settings={**settings, "seed": str(seed)}) for seed in (1, 2)]
    assert "not finished" not in report(runs, tmp_path / "out")
    early = make_run(tmp_path / "3", num_updates=3, settings={**settings, "seed": "3"}, status="failed")
    line = (
        "made: 1 of 3 runs have not finished, and the return of each is that of its own end; "
        f"least far is {early}, failed after 10% of its env steps"
    )
    assert line in report([*runs, early], tmp_path / "out")
    assert line in (tmp_path / "out/index.html").read_text()
    assert "not finished" not in report([early], tmp_path / "alone")


@pytest.mark.parametrize("name", ["index.html", "summary.json"])
def test_a_page_that_is_no_reports_stays(no_pictures, tmp_path, name):
    run = make_run(tmp_path / "run", num_updates=30)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("my thesis")
    with pytest.raises(UserError, match=f"{name}: is there, and no report's; choose another --out"):
        report([run], tmp_path / "out")
    assert (tmp_path / "out" / name).read_text() == "my thesis"
    assert len(list((tmp_path / "out").iterdir())) == 1


def test_figures_of_an_earlier_report_go_and_others_stay(tmp_path):
    runs = [make_run(tmp_path / str(ranks), num_updates=30, num_ranks=ranks) for ranks in (2, 3)]
    (tmp_path / "out/figures").mkdir(parents=True)
    for name in ("job2-pairs.png", "return-on-investment.png"):
        (tmp_path / "out/figures" / name).touch()
    report(runs[:1], tmp_path / "out")
    # There was no report whose it could be.
    assert (tmp_path / "out/figures/job2-pairs.png").exists()
    report(runs, tmp_path / "out")
    assert (tmp_path / "out/figures/job2-weights.svg").exists()
    report(runs[:1], tmp_path / "out")
    left = {path.name for path in (tmp_path / "out/figures").iterdir()}
    assert not any(name.startswith("job2") for name in left)
    assert {"return-on-investment.png", "job1-weights.png"} <= left


def test_an_empty_page_is_what_a_full_disk_left(no_pictures, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/index.html").touch()
    report([make_run(tmp_path / "run", num_updates=30)], tmp_path / "out")
    assert (tmp_path / "out/index.html").stat().st_size


def test_a_run_that_has_lost_a_ranks_file_says_so(no_pictures, tmp_path):
    run = make_run(tmp_path / "run", num_updates=30)
    (run / "rank-0001.h5").unlink()
    line = f"{run}: the file of rank 1 is missing; steps, speed and returns are those of the others alone"
    assert line in report([run], tmp_path / "out")
    assert line in (tmp_path / "out/index.html").read_text()
    begun = make_run(tmp_path / "begun", num_updates=30, status="running")
    (begun / "rank-0001.h5").unlink()
    assert "missing" not in report([begun], tmp_path / "out")


def test_number_of_simulators_may_differ(no_pictures, tmp_path):
    one = make_run(tmp_path / "one", num_updates=30)
    two = make_run(tmp_path / "two", num_updates=30, settings={"environment.num_envs": "8"})
    report([one, two], tmp_path / "out")
    labels = [job["label"] for job in json.loads((tmp_path / "out" / "summary.json").read_text())["jobs"]]
    assert labels == ["made: num_envs 16", "made: num_envs 8"]


def test_a_run_given_twice_counts_once(no_pictures, tmp_path):
    out = make_run(tmp_path / "run", num_updates=30)
    (tmp_path / "link").symlink_to(out)
    for again in (out, out / ".." / "run", out / "job.h5", tmp_path / "link"):
        text = report([out, again], tmp_path / "out")
        assert json.loads((tmp_path / "out" / "summary.json").read_text())["jobs"][0]["seeds"] == [1]
        assert ": given more than once, counted once\n" in text


def test_a_copy_of_a_run_is_no_second_run(no_pictures, tmp_path):
    """The one that has come further counts: a copy may have been made on the way."""
    whole = make_run(tmp_path / "whole", num_updates=30)
    early = make_run(tmp_path / "early", num_updates=20, settings={"total_env_steps": "100"})
    shutil.copytree(whole, tmp_path / "copy")
    for runs in ([whole, early, tmp_path / "copy"], [early, whole, tmp_path / "copy"]):
        text = report(runs, tmp_path / "out")
        (job,) = json.loads((tmp_path / "out" / "summary.json").read_text())["jobs"]
        assert [run["path"] for run in job["runs"]] == [str(whole)]
        assert job["final_return"]["low"] is None
        assert f"{early}: a copy of {whole}, not counted" in text
        assert f"{tmp_path / 'copy'}: a copy of {whole}, not counted" in text
    # The same seed once more is another run.
    again = make_run(tmp_path / "again", num_updates=30)
    with h5py.File(again / "rank-0000.h5", "r+") as file:
        file["updates/time_s"][3:] += 1e-6
    text = report([whole, again], tmp_path / "out")
    assert "made: 2 runs have seed 1; each counts, though they are no seeds apart\n" in text
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["jobs"][0]["seeds"] == [1, 1]


def test_a_report_that_is_being_written_is_left_alone(no_pictures, tmp_path):
    out = make_run(tmp_path / "run", num_updates=30)
    (out / "report").mkdir()
    with sole_writer(out / "report"), pytest.raises(UserError, match="run/report: is being written by another process"):
        report([out])
    assert [path.name for path in (out / "report").iterdir()] == ["figures"]


def test_published_curve_of_the_game(no_pictures, tmp_path):
    game = {"environment.id": "ALE/Pong-v5"}
    short = make_run(tmp_path / "short", settings=game, num_updates=40)
    report([short])
    assert "begins at 1,000,000 env steps" in (short / "report" / "index.html").read_text()
    assert "Dashed, published" not in (short / "report" / "index.html").read_text()
    # One rank whose count of env steps passes two millions.
    long = make_run(tmp_path / "long", settings=game, num_ranks=1, num_updates=40)
    with h5py.File(long / "rank-0000.h5", "r+") as file:
        file["updates/env_steps"][:] = np.linspace(5e4, 2.5e6, 40)
    report([long])
    page = (long / "report" / "index.html").read_text()
    assert "Dashed, published: OpenAI baselines A2C" in page
    assert json.loads((long / "report" / "summary.json").read_text())["jobs"][0]["runs"][0]["distance"]["max"] is None
    # The longest of the runs decides, whichever comes first.
    for runs in ([short, long], [long, short]):
        report(runs, tmp_path / "both")
        assert "Dashed, published" in (tmp_path / "both" / "index.html").read_text()
    other = make_run(tmp_path / "other", settings={**game, "environment.frame_skip": "2"}, num_updates=40)
    report([long, other], tmp_path / "mixed", mixed=True)
    assert "Dashed, published" not in (tmp_path / "mixed" / "index.html").read_text()


def test_a_run_of_an_older_galampi(tmp_path, no_pictures):
    out = make_run(tmp_path / "run", num_updates=40)
    for path in out.glob("rank-*.h5"):
        with h5py.File(path, "r+") as file:
            del file["updates/step_norm"], file["edges"], file["energy"], file.attrs["energy_unread"]
    report([out])
    run = json.loads((out / "report" / "summary.json").read_text())["jobs"][0]["runs"][0]
    assert run["distance"]["bound"] is None
    assert "did not record" in run["distance"]["reason"]
    assert run["energy"]["reason"] == "the run is of a galampi that did not record energy"
    page = (out / "report" / "index.html").read_text()
    assert "No bound is drawn: rank-0000.h5 has no step_norm" in page
    assert "do not count by edge" in page


def test_a_run_without_sketches_episodes_or_a_rank(tmp_path, no_pictures):
    out = make_run(tmp_path / "run", num_updates=4, sketches=False)
    (out / "rank-0001.h5").unlink()
    report([out])
    job = json.loads((out / "report" / "summary.json").read_text())["jobs"][0]
    assert job["final_return"]["iqm"] is None
    assert "holds no sketches" in job["runs"][0]["distance"]["reason"]


def damaged(run, kind):
    path = run / "rank-0001.h5"
    size = path.stat().st_size
    match kind:
        case "half":
            path.write_bytes(path.read_bytes()[: size // 2])
        case "empty":
            path.write_bytes(b"")
        case "foreign":
            with h5py.File(path, "w") as file:
                file["x"] = 1
        case "text":
            path.write_text("hello")
        case "newer":
            with h5py.File(path, "r+") as file:
                file.attrs["schema_version"] = 99
        case "garbage":
            path.write_bytes(path.read_bytes()[:100] + bytes(size - 100))
        case "job":
            (run / "job.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
        case "no job":
            (run / "job.h5").unlink()
        case "nothing":
            shutil.rmtree(run)
        case "no rows":
            for each in run.glob("rank-*.h5"):
                each.unlink()


@pytest.mark.parametrize(
    "kind", ["half", "empty", "foreign", "text", "newer", "garbage", "job", "no job", "nothing", "no rows"]
)
def test_damaged_files_are_told_in_one_line(tmp_path, kind):
    run = make_run(tmp_path / "run", num_updates=300)
    damaged(run, kind)
    with pytest.raises(ResultsError) as raised:
        report([run], tmp_path / "out")
    assert "\n" not in str(raised.value)
    assert str(run) in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_out_that_cannot_be_written(tmp_path):
    run = make_run(tmp_path / "run", num_updates=20)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file: cannot be written"):
        report([run], tmp_path / "file")


def keys(value, prefix=""):
    """List the keys of a summary, those inside of lists once."""
    if isinstance(value, list):
        return set().union(*(keys(each, prefix) for each in value)) if value else set()
    if not isinstance(value, dict):
        return set()
    return {prefix + key for key in value}.union(*(keys(each, f"{prefix}{key}.") for key, each in value.items()))


def test_every_key_of_the_summary_is_documented(seeds):
    _, summary, _ = seeds
    text = (Path(__file__).parents[3] / "docs" / "report.md").read_text().split("### summary.json")[1]
    found = {key.rsplit(".", 1)[-1] for key in keys(summary) if not key.startswith("environment.")}
    words = set(re.findall(r"`\.?(?:runs\.)?(\w+)`", text.split("## `python")[0]))
    assert found <= words, f"docs/report.md lacks {found - words}"


def test_settings_that_a_restart_has_changed_label_a_run(no_pictures, tmp_path):
    runs = [make_run(tmp_path / name, settings={"seed": seed}) for name, seed in (("kept", "1"), ("changed", "2"))]
    for rank in range(2):
        RankWriter(
            runs[1] / f"rank-{rank:04d}.h5",
            rank=rank,
            sketch=Sketch(64, 500),
            resume_at=Position(100, 100, 10),
            restart=Restart(
                update=100,
                time_s=10.0,
                reason="test",
                weights_restarted=True,
                changes="max_time_s 1.0 -> 2.0; gossip.topology 'ring' -> 'exponential'",
            ),
        ).close()
    changed = RunReport(runs[1]).run
    assert settings_changed(changed) == [(100, "gossip.topology 'ring' -> 'exponential'")]
    report(runs, tmp_path / "out")
    # Not two seeds of one job, and not under one name.
    labels = [job["label"] for job in json.loads((tmp_path / "out/summary.json").read_text())["jobs"]]
    assert labels == ["made", "made: later gossip.topology 'ring' -> 'exponential'"]
    assert "From update 100 of rank 0 on: gossip.topology" in (tmp_path / "out/index.html").read_text()


def test_seeds_of_copies_of_a_project_are_one_job(no_pictures, tmp_path):
    for seed, place in (("1", "/home/me/proj"), ("2", "/scratch/me/proj")):
        make_run(tmp_path / seed, num_updates=20, settings={"seed": seed, "modules_folder": place})
    report([tmp_path / "1", tmp_path / "2"], tmp_path / "page")
    (job,) = json.loads((tmp_path / "page/summary.json").read_text())["jobs"]
    assert job["seeds"] == [1, 2]


def test_files_beside_runs_are_no_runs(no_pictures, tmp_path, capsys):
    """As `runs/*` names the logs of jobs."""
    make_run(tmp_path / "runs/pong", num_updates=20)
    (tmp_path / "runs/pong-123.log").write_text("trains")
    given = [str(path) for path in sorted((tmp_path / "runs").iterdir())]
    assert run_command(["status", *given]) == 0
    assert capsys.readouterr().out == f"{given[0]}: finished\n"
    assert run_command(["report", *given, "--out", str(tmp_path / "page")]) == 0
    with pytest.raises(UserError, match=r"pong-123\.log: no run here"):
        run_command(["report", given[1]])
