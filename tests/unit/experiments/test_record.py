"""What is kept of runs, and what it comes to."""

import numpy as np
import pytest

pytest.importorskip("scipy")

from made_runs import make_run

from galampi.analysis.summary import RunReport
from galampi.errors import UserError
from galampi.experiments.outcome import read_outcome, table
from galampi.experiments.picture import save_picture
from galampi.experiments.record import read_record, record, write_checksums
from galampi.experiments.running import chosen_factors, read_plan

FACTS = {"processor": "a processor", "date": "2026-01-02"}
PLAN = """
claim = "more is better"
refuted_if = "it is not"
job = "cartpole"
num_ranks = 2
compared = "gossip.method"
baseline = "gala"
threshold = 150.0
seeds = [1, 2, 3]
[axes]
"gossip.method" = ["push-sum", "gala"]
"""
TUNING = '\n[tuning]\nkey = "learner.learning_rate"\nfactors = [0.5, 2.0]\nseeds = [9]\n'


def test_the_numbers_are_those_of_the_run(tmp_path) -> None:
    report = RunReport(make_run(tmp_path / "run", settings={"total_env_steps": "32000"}))
    record(tmp_path / "run", tmp_path / "kept/run.h5", FACTS)
    kept = read_record(tmp_path / "kept/run.h5")
    assert kept.final_return == pytest.approx(report.summary()["final_return"])
    assert (kept.curve_at[-1], len(kept.curve)) == (32_000, 200)
    assert kept.curve[-1] == pytest.approx(kept.final_return)
    assert kept.area == pytest.approx(np.nanmean(kept.curve))
    assert kept.distance[-1] == pytest.approx(np.linalg.norm(report.distance.to_mean[-1]), rel=1e-6)
    assert (kept.about["processor"], kept.about["date"], kept.about["num_ranks"]) == ("a processor", "2026-01-02", 2)
    assert (tmp_path / "kept/run.h5").stat().st_size < 30_000


@pytest.fixture
def experiment(tmp_path):
    """Return the folder of an experiment whose first arm is better in two of three seeds."""
    folder = tmp_path / "experiment"
    folder.mkdir()
    (folder / "plan.toml").write_text(PLAN)
    for seed, slopes in {1: (1.0, 0.5), 2: (1.0, 0.5), 3: (0.5, 1.0)}.items():
        for method, slope in zip(("push-sum", "gala"), slopes, strict=True):
            settings = {"total_env_steps": "32000", "gossip.method": method, "seed": str(seed)}
            make_run(tmp_path / f"{method}-{seed}", slope=slope, settings=settings)
            record(tmp_path / f"{method}-{seed}", folder / f"results/method-{method}_seed-{seed}.h5", FACTS)
    write_checksums(folder / "results")
    return folder


def test_an_experiment_comes_to_what_its_runs_do(experiment, tmp_path) -> None:
    outcome = read_outcome(experiment)
    text = table(outcome)
    assert "6 of 6 runs, 2 ranks each; a processor; 2026-01-02" in text
    rows = {line.split()[0]: line for line in text.splitlines() if " (" in line and line[2] != " "}
    assert "0.67 (0.21 to 0.94)" in rows["push-sum"]
    assert "0.33 (0.06 to 0.79)" in rows["gala"]
    assert "better with probability 0.67" in text
    save_picture(outcome, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    (experiment / "results/method-gala_seed-3.h5").unlink()
    assert "5 of 6 runs" in table(read_outcome(experiment))
    assert "push-sum less gala over 2 seeds:" in table(read_outcome(experiment))


def test_the_tuning_takes_the_greatest_area(experiment, tmp_path) -> None:
    (experiment / "plan.toml").write_text(PLAN + TUNING)
    with pytest.raises(UserError, match=r"x0\.5_seed-9\.h5: this run of the tuning is not recorded"):
        read_outcome(experiment)
    for method, best in (("push-sum", 2.0), ("gala", 0.5)):
        for factor in (0.5, 2.0):
            settings = {"total_env_steps": "32000", "gossip.method": method, "seed": "9"}
            run = make_run(tmp_path / f"{method}-{factor}", slope=1.0 if factor == best else 0.5, settings=settings)
            record(run, experiment / f"tuning/method-{method}_x{factor:g}_seed-9.h5", FACTS)
    assert chosen_factors(read_plan(experiment), experiment) == {"method-push-sum": 2.0, "method-gala": 0.5}


def test_nothing_is_kept(tmp_path) -> None:
    (tmp_path / "plan.toml").write_text(PLAN)
    with pytest.raises(UserError, match="nothing is kept of its runs; --runs DIR trains them"):
        read_outcome(tmp_path)
