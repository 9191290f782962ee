"""What is kept of runs, and what it comes to."""

import json
import shutil
from dataclasses import asdict
from types import SimpleNamespace

import h5py
import numpy as np
import pytest

pytest.importorskip("scipy")

from made_runs import make_run

from galampi import cli
from galampi.analysis.summary import RunReport
from galampi.errors import ResultsError, UserError
from galampi.experiments import faults as faults_program
from galampi.experiments import running
from galampi.experiments.faults import Fault, Suffered, told
from galampi.experiments.kept import chosen_factors, read_kept
from galampi.experiments.outcome import Arm, Outcome, growth, read_outcome, relative
from galampi.experiments.picture import _colors, save_picture, save_pictures
from galampi.experiments.plan import Plan, PlannedRun, read_plan
from galampi.experiments.record import RecordedRun, are_at_least, read_record, record, write_checksums
from galampi.experiments.tables import table
from galampi.job import parse_job
from galampi.launch.here import STOPPED
from galampi.policies.stored import checkpoint_path
from galampi.results import save_checkpoint
from galampi.results.sketch import relative_error

FACTS = {"processor": "a processor", "date": "2026-01-02"}
PLAN = """
claim = "more is better"
refuted_if = "it is not"
job = "made.toml"
num_ranks = 2
compared = "gossip.method"
baseline = "gala"
threshold = 150.0
seeds = [1, 2, 3]
[settings]
total_env_steps = 32_000
[axes]
"gossip.method" = ["push-sum", "gala"]
"""
TUNING = '\n[tuning]\nkey = "learner.learning_rate"\nfactors = [0.5, 2.0]\nseeds = [9]\n'

SKETCHES = PLAN.replace("gossip.method", "record.sketch_size").replace('["push-sum", "gala"]', "[64, 1024]")
SKETCHES = SKETCHES.replace('baseline = "gala"', 'baseline = "1024"\nstatistic = "sketch"')
MADE = 'name = "made"\n[environment]\nid = "CartPole-v1"\n'


def planned(folder, plan=PLAN):
    """Write a plan and the job of made runs beside it."""
    folder.mkdir(exist_ok=True)
    (folder / "plan.toml").write_text(plan)
    (folder / "made.toml").write_text(MADE)
    return folder


def keep(folder, part, name, settings, tmp_path, **made):
    """Make a run and keep it as one of an experiment."""
    run = make_run(tmp_path / name, settings={"total_env_steps": "32000", **settings}, **made)
    record(run, folder / part / f"{name}.h5", FACTS)
    write_checksums(folder / part)


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


@pytest.mark.parametrize("threshold", [0.9, 0.95, 0.7, -0.2, 0.8, 18.0])
def test_who_just_reaches_a_threshold_has_reached_it(threshold) -> None:
    returns = np.full(3, threshold, np.float32).astype(float)
    assert are_at_least(returns, threshold).all()
    assert not are_at_least(returns - 1e-5, threshold).any()


def test_a_run_whose_faults_could_not_happen_is_refused(tmp_path) -> None:
    job = parse_job(MADE, "made")
    faults = Fault("kill", 0.5), Fault("kill", 0.9)
    assert running._told_of_faults(tmp_path, PlannedRun(job)) == ""
    hurt = PlannedRun(job, faults)
    with pytest.raises(UserError, match=r"was not trained by `experiment`.* remove it, and it is trained again"):
        running._told_of_faults(tmp_path, hurt)
    for num_faults, words in ((1, "; 1 of its 2 faults were to come after its end"), (2, "")):
        (tmp_path / "faults.json").write_text(json.dumps(asdict(Suffered(1.0, num_faults, 0))))
        assert running._told_of_faults(tmp_path, hurt) == words


def test_runs_that_suffered_other_faults_are_of_another_plan(tmp_path) -> None:
    job = parse_job(MADE, "made", {"total_env_steps": "32000"})
    run = make_run(tmp_path / "run", settings={"total_env_steps": "32000"})
    faults = (Fault("kill", 0.5),)
    (run / "faults.json").write_text(json.dumps(asdict(Suffered(1.0, 1, 0, told(faults)))))
    record(run, tmp_path / "results/run.h5", FACTS)
    write_checksums(tmp_path / "results")
    plan = SimpleNamespace(num_ranks=2)
    assert read_kept(tmp_path, "results", plan, {"run": PlannedRun(job, faults)})
    with pytest.raises(UserError, match=r"run\.h5: is of another run: faults is .*0\.5.* there, and .*0\.75"):
        read_kept(tmp_path, "results", plan, {"run": PlannedRun(job, (Fault("kill", 0.75),))})


@pytest.mark.parametrize(
    ("words", "is_rank"),
    [
        (["python3.11", "-m", "galampi", "train", "job.toml"], True),
        (["/venv/bin/mpirun", "-n", "2", "/venv/bin/python", "-m", "galampi", "train", "job.toml"], False),
        (["/venv/bin/python", "-c", "from multiprocessing.forkserver import main; main(5, 6)"], False),
        ([], False),
    ],
)
def test_who_is_stopped_is_a_rank(words, is_rank) -> None:
    assert faults_program._is_rank(SimpleNamespace(cmdline=lambda: list(words))) is is_rank


@pytest.fixture(scope="module")
def kept_runs(tmp_path_factory):
    """Return the folder of an experiment whose first arm is better in two of three seeds."""
    runs = tmp_path_factory.mktemp("runs")
    folder = planned(tmp_path_factory.mktemp("experiment"))
    for seed, slopes in {1: (1.0, 0.5), 2: (1.0, 0.5), 3: (0.5, 1.0)}.items():
        for method, slope in zip(("push-sum", "gala"), slopes, strict=True):
            settings = {"gossip.method": method, "seed": str(seed)}
            keep(folder, "results", f"method-{method}_seed-{seed}", settings, runs, slope=slope)
    return folder


@pytest.fixture
def experiment(kept_runs, tmp_path):
    return shutil.copytree(kept_runs, tmp_path / "experiment")


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
    rate = parse_job(MADE, "made").learner.learning_rate
    for method, best in (("push-sum", 2.0), ("gala", 0.5)):
        for factor in (0.5, 2.0):
            settings = {"gossip.method": method, "seed": "9", "learner.learning_rate": repr(rate * factor)}
            name = f"method-{method}_x{factor:g}_seed-9"
            keep(experiment, "tuning", name, settings, tmp_path, slope=1.0 if factor == best else 0.5)
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
        distances = nothing if distance is None else np.full(2, float(distance))
        return RecordedRun(
            about={"num_ranks": 4, "date": "2026-01-02", "processor": "a processor"},
            curve_at=np.array([1.0]),
            curve=np.array([100.0]),
            last_returns=np.full(10, 100.0),
            distance_at_s=np.array([1.0, 2.0])[: len(distances)],
            distance=distances,
            norm=np.full(len(distances), 5.0),
            bound_at_s=np.array([1.0, 2.0])[: len(bounds)],
            bound=bounds,
            bounded_distance=distances[: len(bounds)],
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
        outside=[(None, None), (0.5, None)],
    )
    np.testing.assert_allclose(relative(arms[0], "distance"), [1, 1])
    assert growth(arms[1:3], "distance").value == pytest.approx(0.5)
    assert growth(arms[1:3], "bound").value == pytest.approx(1)
    plan = Plan(
        claim="", refuted_if="", job="cartpole", num_ranks=4, axes={"gossip.delay_updates": (0, 4)}, threshold=1,
        compared="gossip.delay_updates", baseline="0", statistic="distance", seeds=(1, 2),
    )  # fmt: skip
    lines = table(Outcome(plan, {"": arms})).splitlines()
    lines = lines[lines.index("all runs") + 1 :]
    assert lines[1].split()[:7] == ["0", "2", "1.00", "(1.00", "to", "1.00)", "10.00"]
    assert "2 of 2" in lines[1]
    # One of the runs without exchange ends within the bound of the baseline, 1.
    assert "1 of 2" in lines[4]
    # Of another library's runs nobody knows distances.
    assert "1 of 1" in lines[5]
    assert lines[-1].endswith("distance 0.50 (0.50 to 0.50), bound 1.00 (1.00 to 1.00)")


def test_sketches_are_compared_with_all_parameters(tmp_path) -> None:
    folder = planned(tmp_path / "experiment", SKETCHES)
    rng = np.random.default_rng(1)
    for size in (64, 1024):
        settings = {"record.sketch_size": str(size), "seed": "1", "total_env_steps": "32000"}
        run = make_run(tmp_path / str(size), settings=settings)
        for update in (10, 20):
            for rank in range(2):
                state = {"learner": {"z": rng.normal(size=20_000).astype(np.float32)}}
                save_checkpoint(checkpoint_path(run, rank, update), state)
        # Another is not whole yet.
        save_checkpoint(checkpoint_path(run, 0, 30), state)
        record(run, folder / f"results/sketch_size-{size}_seed-1.h5", FACTS)
    write_checksums(folder / "results")
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


def changed(path, change):
    """Change a kept file, as one who knows of its sum would."""
    with h5py.File(path, "r+") as file:
        change(file)
    write_checksums(path.parent)


PUSH, GALA = (f"results/method-{method}_seed-1.h5" for method in ("push-sum", "gala"))


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ("total_env_steps = 32_000", "total_env_steps = 64_000", "total_env_steps is 32000 there, and 64000 by"),
        ("num_ranks = 2", "num_ranks = 16", "num_ranks is 2 there, and 16 by"),
        ("32_000", '32_000\n"environment.kwargs" = { size = 3 }', "environment.kwargs.size is None there, and 3 by"),
    ],
)
def test_runs_of_another_plan_are_refused(experiment, before, after, told) -> None:
    (experiment / "plan.toml").write_text(PLAN.replace(before, after))
    with pytest.raises(UserError, match=f"seed-1.h5: is of another run: {told}"):
        read_outcome(experiment)


def test_a_run_in_the_place_of_another_is_refused(experiment) -> None:
    (experiment / PUSH).write_bytes((experiment / GALA).read_bytes())
    with pytest.raises(ResultsError, match="is not what was kept, by SHA256SUMS"):
        read_outcome(experiment)
    write_checksums(experiment / "results")
    with pytest.raises(UserError, match=r"gossip\.method is 'gala' there, and 'push-sum' by"):
        read_outcome(experiment)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda file: file.attrs.pop("date"), "damaged: .*no attribute date"),
        (lambda file: file.__delitem__("curve"), "damaged: a learning curve of 0 of 200 moments"),
        (
            lambda file: file.attrs.__setitem__("schema_version", "new"),
            "damaged: schema_version is 'new'; must be a number",
        ),
    ],
)
def test_damaged_records_are_told_in_a_line(experiment, change, told) -> None:
    changed(experiment / PUSH, change)
    with pytest.raises(ResultsError, match=told):
        read_outcome(experiment)


def test_a_file_that_was_not_kept_to_the_end_is_kept_again(experiment, tmp_path, monkeypatch) -> None:
    sums = experiment / "results/SHA256SUMS"
    sums.write_text(
        "".join(line for line in sums.read_text().splitlines(keepends=True) if "push-sum_seed-1" not in line)
    )
    with pytest.raises(ResultsError, match=r"push-sum_seed-1\.h5: is not listed in SHA256SUMS"):
        read_outcome(experiment)
    trained = []

    def train(runs, *arguments, laid_out_by, **others):
        laid_out_by()
        trained.extend(run.name for run in running.sweep.read_sweep(runs))
        return STOPPED

    monkeypatch.setattr(running.here, "train_sweep", train)
    assert running.run_plan(experiment, tmp_path / "runs", 1, print) == STOPPED
    assert trained == ["method-push-sum_seed-1"]


def test_a_sweep_follows_its_plan(tmp_path, monkeypatch) -> None:
    folder, runs = planned(tmp_path / "experiment"), tmp_path / "runs"
    laid_out = []

    def train(runs, *arguments, laid_out_by, **others):
        laid_out_by()
        laid_out[:] = [run.name for run in running.sweep.read_sweep(runs)]
        return STOPPED

    monkeypatch.setattr(running.here, "train_sweep", train)
    for seeds in ([1, 2, 3], [1, 2], [1, 2, 4]):
        planned(folder, PLAN.replace("[1, 2, 3]", str(seeds)))
        assert running.run_plan(folder, runs, 1, print) == STOPPED
        assert sorted(laid_out) == sorted(f"method-{m}_seed-{s}" for s in seeds for m in ("push-sum", "gala"))
    # What is kept already stays in the sweep that trained it.
    made = {"total_env_steps": "32000", "gossip.method": "gala", "seed": "2"}
    record(
        make_run(runs / "results/method-gala_seed-2", settings=made), folder / "results/method-gala_seed-2.h5", FACTS
    )
    write_checksums(folder / "results")
    assert running.run_plan(folder, runs, 1, print) == STOPPED
    assert len(laid_out) == 6
    # One that has begun stays what it is.
    make_run(runs / "results/method-gala_seed-1", status="stopped")
    (folder / "results/method-gala_seed-2.h5").unlink()
    planned(folder, PLAN.replace("32_000", "64_000"))
    with pytest.raises(UserError, match=r"total_env_steps is 32000 in method-gala_seed-\d, and 64000 in the plan"):
        running.run_plan(folder, runs, 1, print)


def test_what_cannot_be_kept_is_told_before_training_and_after(tmp_path, monkeypatch) -> None:
    folder = planned(tmp_path / "experiment")
    (folder / "results").write_text("")
    monkeypatch.setattr(running.here, "train_sweep", lambda *arguments, **others: pytest.fail("it trains"))
    with pytest.raises(UserError, match="results: cannot be written: "):
        running.run_plan(folder, tmp_path / "runs", 1, print)
    (folder / "results").unlink()

    def train(runs, *arguments, after_each, laid_out_by, **others):
        laid_out_by()
        for seed in (1, 2):
            settings = {"total_env_steps": "32000", "gossip.method": "gala", "seed": str(seed)}
            made = make_run(runs / f"method-gala_seed-{seed}", settings=settings)
            if seed == 1:
                (made / "rank-0001.h5").unlink()
            after_each()
        return 1

    monkeypatch.setattr(running.here, "train_sweep", train)
    with pytest.raises(UserError, match=r"cannot be kept: .*the file of rank 1 is missing"):
        running.run_plan(folder, tmp_path / "runs", 1, print)
    assert [path.name for path in (folder / "results").glob("*.h5")] == ["method-gala_seed-2.h5"]


def test_runs_that_are_not_like_the_others_are_told_of(experiment, tmp_path) -> None:
    for path in (experiment / "results").glob("*push-sum*"):
        path.unlink()
    write_checksums(experiment / "results")
    outcome = read_outcome(experiment)
    assert "no runs yet: push-sum" in table(outcome)
    save_pictures({experiment: outcome}, tmp_path / "picture.png")
    few = {"gossip.method": "push-sum", "seed": "1", "total_env_steps": "32000"}
    keep(experiment, "results", "method-push-sum_seed-1", few, tmp_path / "few", num_updates=4)
    outcome = read_outcome(experiment)
    text = table(outcome)
    assert "push-sum: 1 run had too few episodes for a return; no success, and in no mean" in text
    assert "push-sum: 1 run ended before the env steps were done, the first at 2.0%" in text
    assert "nan" not in text
    save_pictures({experiment: outcome}, tmp_path / "picture.png")
    with pytest.raises(UserError, match=r"must end with \.png"):
        save_pictures({experiment: outcome}, tmp_path / "picture.svg")


def test_small_returns_have_more_decimals(experiment, tmp_path) -> None:
    for method, seed in ((method, seed) for method in ("push-sum", "gala") for seed in (1, 2, 3)):
        settings = {"gossip.method": method, "seed": str(seed)}
        keep(experiment, "results", f"method-{method}_seed-{seed}", settings, tmp_path / "small", slope=0.004)
    assert read_outcome(experiment).decimals == 3


def test_a_color_is_one_arms_in_every_panel(experiment) -> None:
    outcome = read_outcome(experiment)
    (arms,) = outcome.groups.values()
    one, both = Outcome(outcome.plan, {"a": [], "b": arms[1:]}), Outcome(outcome.plan, {"a": arms, "b": arms[1:]})
    assert _colors(both)["gala"] != _colors(both)["push-sum"]
    assert set(_colors(one)) == {"gala"}


@pytest.mark.parametrize("statistic", ["distance", "sketch"])
def test_statistics_without_what_they_are_about(experiment, statistic, tmp_path) -> None:
    (experiment / "plan.toml").write_text(PLAN.replace("threshold", f'statistic = "{statistic}"\nthreshold'))
    outcome = read_outcome(experiment)
    assert "push-sum" in table(outcome)
    save_picture(outcome, tmp_path / "picture.png")


def test_env_steps_to_a_return(experiment) -> None:
    text = PLAN.replace("threshold = 150.0", 'statistic = "steps"\nthreshold = 80.0')
    (experiment / "plan.toml").write_text(text)
    lines = table(read_outcome(experiment)).splitlines()
    rows = {line.split()[0]: line.split() for line in lines if line.startswith("  ") and "less" not in line}
    # The mean of the last 100 returns, of two ranks, is 80 when each has done 105 updates of 80 env steps; by half the
    # slope 185.
    assert rows["push-sum"][1:7] == ["3", "1.00", "(0.44", "to", "1.00)", "16,800"]
    assert rows["gala"][6] == "29,600"
    (difference,) = [line for line in lines if "less gala" in line]
    assert difference.startswith("  push-sum less gala over 3 seeds: env steps to it -4,2")
    (experiment / "plan.toml").write_text(text.replace("80.0", "800.0"))
    assert "0.00 (0.00 to 0.56)  -                -      -" in table(read_outcome(experiment))
