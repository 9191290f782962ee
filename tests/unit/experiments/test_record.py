"""What is kept of runs, and what it comes to."""

import numpy as np
import pytest

pytest.importorskip("scipy")

from made_runs import make_run

from galampi import cli
from galampi.analysis.summary import RunReport
from galampi.errors import UserError
from galampi.experiments.outcome import Arm, _distances, growth, read_outcome, relative, table
from galampi.experiments.picture import save_picture
from galampi.experiments.plan import Plan
from galampi.experiments.record import RecordedRun, read_record, record, write_checksums
from galampi.experiments.running import chosen_factors, read_plan
from galampi.launch.here import STOPPED
from galampi.policies.stored import checkpoint_path
from galampi.results import save_checkpoint
from galampi.results.sketch import relative_error

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

SKETCHES = PLAN.replace("gossip.method", "record.sketch_size").replace('["push-sum", "gala"]', "[64, 1024]")
SKETCHES = SKETCHES.replace('baseline = "gala"', 'baseline = "1024"\nstatistic = "sketch"')


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
    plan = read_plan(experiment)
    assert chosen_factors(plan, experiment, plan.arms) == {"method-push-sum": 2.0, "method-gala": 0.5}


def test_nothing_is_kept(tmp_path) -> None:
    (tmp_path / "plan.toml").write_text(PLAN)
    with pytest.raises(UserError, match="nothing is kept of its runs; --runs DIR trains them"):
        read_outcome(tmp_path)


def made_of_distances(seeds, **arms):
    """Return arms of runs that are given as pairs of distance and bound, by their values."""
    nothing = np.zeros(0)

    def run(distance, bound):
        bounds = nothing if bound is None else np.full(2, float(bound))
        return RecordedRun(
            about={"num_ranks": 4},
            curve_at=nothing,
            curve=nothing,
            last_returns=np.array([100.0]),
            distance_at_s=np.array([1.0, 2.0]),
            distance=np.full(2, float(distance)),
            norm=np.full(2, 5.0),
            bound_at_s=np.array([1.0, 2.0])[: len(bounds)],
            bound=bounds,
            bounded_distance=np.full(len(bounds), float(distance)),
            exact_distance=nothing,
            sketched_distance=nothing,
        )

    return [
        Arm(value.strip("_"), None, dict(zip(seeds, (run(*each) for each in runs), strict=True)))
        for value, runs in arms.items()
    ]


def test_distances_and_how_they_grow() -> None:
    # Over sqrt(4) times 5; the distance grows with the square root, the bound with the number.
    arms = made_of_distances(
        [1, 2],
        _0=[(0.1, 1), (0.1, 1)],
        _4=[(0.2, 4), (0.2, 4)],
        _16=[(0.4, 16), (0.4, 16)],
        none=[(3, None), (0.5, None)],
    )
    np.testing.assert_allclose(relative(arms[0], "distance"), [1, 1])
    assert growth(arms[1:3], "distance").value == pytest.approx(0.5)
    assert growth(arms[1:3], "bound").value == pytest.approx(1)
    plan = Plan(
        claim="", refuted_if="", job="cartpole", num_ranks=4, axes={"gossip.delay_updates": (0, 4)}, threshold=1,
        compared="gossip.delay_updates", baseline="0", statistic="distance", seeds=(1, 2),
    )  # fmt: skip
    lines = list(_distances(plan, arms))
    assert lines[1].split()[:7] == ["0", "2", "1.00", "(1.00", "to", "1.00)", "10.00"]
    assert "2 of 2" in lines[1]
    # One of the runs without exchange ends within the bound of the baseline, 1.
    assert "1 of 2" in lines[4]
    assert lines[-1].endswith("distance 0.50 (0.50 to 0.50), bound 1.00 (1.00 to 1.00)")


def test_sketches_are_compared_with_all_parameters(tmp_path) -> None:
    folder = tmp_path / "experiment"
    folder.mkdir()
    (folder / "plan.toml").write_text(SKETCHES)
    rng = np.random.default_rng(1)
    for size in (64, 1024):
        run = make_run(tmp_path / str(size), settings={"record.sketch_size": str(size)})
        for update in (10, 20):
            for rank in range(2):
                state = {"learner": {"z": rng.normal(size=20_000).astype(np.float32)}}
                save_checkpoint(checkpoint_path(run, rank, update), state)
        # Another is not whole yet.
        save_checkpoint(checkpoint_path(run, 0, 30), state)
        record(run, folder / f"results/sketch_size-{size}_seed-1.h5", FACTS)
    kept = read_record(folder / "results/sketch_size-64_seed-1.h5")
    # Of two ranks that differ by sqrt(2) in each component.
    np.testing.assert_allclose(kept.exact_distance, np.full(4, np.sqrt(20_000 / 2)), rtol=0.02)
    assert 0.001 < np.abs(kept.sketch_errors).max() < 4 * relative_error(64)
    rows = {line.split()[0]: line.split() for line in table(read_outcome(folder)).splitlines() if line.startswith("  ")}
    assert (rows["64"][1:3], rows["64"][-1], rows["1024"][-1]) == (["1", "4"], "8.84", "2.21")
    save_picture(read_outcome(folder), tmp_path / "picture.png")


def test_who_stops_before_anything_is_kept_hears_no_complaint(tmp_path, monkeypatch, capsys) -> None:
    (tmp_path / "plan.toml").write_text(PLAN)
    monkeypatch.setattr("galampi.experiments.running.run_plan", lambda *arguments: STOPPED)
    assert cli.run(["experiment", str(tmp_path), "--runs", str(tmp_path / "runs")]) == STOPPED
    assert capsys.readouterr() == ("", "")
