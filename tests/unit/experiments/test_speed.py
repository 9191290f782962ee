"""Experiments on speed, with ranks that only say what they would have measured."""

import json

import numpy as np
import pytest

pytest.importorskip("scipy")

from galampi.bench import contestants
from galampi.cli import run
from galampi.errors import UserError
from galampi.experiments import picture, speed
from galampi.experiments.plan import read_as

PLAN = """
claim = "gossip is faster"
refuted_if = "it is not"
num_ranks = 4
methods = ["push-sum", "allreduce"]
baseline = "allreduce"
num_rounds = 3
[conditions.calm]
seconds = 2
[conditions."one is slow"]
seconds = 2
disturbance = { slow_rank = 3 }
"""


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """Return the folder of an experiment, and what was measured so far."""
    (tmp_path / "plan.toml").write_text(PLAN)
    taken = []

    def training(num_ranks, seconds, *, precision, method, disturbance):
        taken.append(f"{method} {disturbance.slow_rank}")
        is_hurt = method == "allreduce" and disturbance.slow_rank is not None
        # The machine is slower from sample to sample: only what lies in one round may be compared.
        return {"steps_per_s": (100.0 if is_hurt else 200.0) * 0.9 ** ((len(taken) - 1) // 4), "effective_step": 0.5}

    monkeypatch.setattr(contestants, "training", training)
    return tmp_path, taken


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("num_ranks = 4", "num_ranks = 64", "num_ranks is 4 there, and 64 by"),
        ("slow_rank = 3", "slow_rank = 3, slow_factor = 9.0", "disturbance is {'slow_rank': 3, "),
        ("[conditions.calm]\nseconds = 2", "[conditions.calm]\nseconds = 999", "seconds is 2.0 there, and 999.0 by"),
        ("baseline =", 'precision = "bfloat16"\nbaseline =', "precision is 'float32' there, and 'bfloat16' by"),
    ],
)
def test_what_was_measured_under_another_plan_is_refused(measured, old, new, told) -> None:
    folder, _ = measured
    speed.measure_plan(folder, lambda line: None)
    changed = PLAN.replace(old, new)
    assert changed != PLAN
    (folder / "plan.toml").write_text(changed)
    for ask in (speed.speed_table, lambda folder: speed.measure_plan(folder, lambda line: None)):
        with pytest.raises(UserError, match=r"rounds\.json: round 1 of .* was measured under another plan: ") as error:
            ask(folder)
        assert told in str(error.value)


def test_what_a_plan_asks_for_no_more_does_not_count(measured) -> None:
    folder, taken = measured
    speed.measure_plan(folder, lambda line: None)
    (folder / "plan.toml").write_text(PLAN.replace("num_rounds = 3", "num_rounds = 2"))
    assert "8 of 8 samples" in speed.speed_table(folder)
    (folder / "plan.toml").write_text(PLAN)
    speed.measure_plan(folder, lambda line: None)
    assert len(taken) == 12


@pytest.mark.parametrize(
    ("disturbance", "told"),
    [
        ("slow_rank = 4", r"slow_rank is 4; must lie in \[0, 3\]"),
        ("stopped_rank = -1, stop_s = 1.0", r"stopped_rank is -1; must lie in \[0, 3\]"),
        ("slow_rank = 1, slow_factor = 0.5", r"slow_factor is 0\.5; must be at least 1"),
        ("simulator_s = -0.1", r"simulator_s is -0\.1; must be at least 0"),
        ("slow_rank = 1, slow_factor = nan", r"slow_factor is nan; must be at least 1"),
        ("slow_rank = 1, slow_factor = 1.0", r"slow_rank is given, and slow_factor is 1"),
        ("stopped_rank = 1", r"stopped_rank is given, and stop_s is 0"),
        ("simulator_sigma = 0.5", r"simulator_sigma is given, and simulator_s is 0"),
        ("stopped_rank = 1, stop_after_s = 60.0, stop_s = 1.0", r"stop_after_s is 60; all is over after 4 s"),
    ],
)
def test_a_disturbance_that_disturbs_nothing_is_refused(measured, disturbance, told) -> None:
    folder, _ = measured
    (folder / "plan.toml").write_text(PLAN.replace("slow_rank = 3", disturbance))
    with pytest.raises(UserError, match=rf"conditions\.one is slow: {told}"):
        read_as(speed.SpeedPlan, folder)


def test_methods_take_turns_and_a_round_is_compared_with_itself(measured) -> None:
    folder, taken = measured
    assert speed.is_about_speed(folder)
    speed.measure_plan(folder, lambda line: None)
    assert taken[:4] == ["push-sum None", "allreduce None", "push-sum 3", "allreduce 3"]
    assert taken[4:8] == ["allreduce None", "push-sum None", "allreduce 3", "push-sum 3"]
    ratios = speed.compared_with_baseline(folder)
    assert ratios.baseline == "allreduce"
    assert ratios.estimates["calm"]["push-sum"].value == pytest.approx(1)
    assert ratios.estimates["one is slow"]["push-sum"].value == pytest.approx(2)
    plan, samples = read_as(speed.SpeedPlan, folder), speed._read(folder)
    np.testing.assert_allclose(speed.ratios(plan, samples, "calm", "push-sum", moved=True), np.ones(3))
    lines = speed.speed_table(folder).splitlines()
    assert lines[3].startswith("12 of 12 samples, 4 ranks each, float32; ")
    assert lines[-2].split()[:7] == ["one", "is", "slow", "push-sum", "3", "180", "2.00"]
    picture.save_ratios(ratios, folder / "picture.png")
    assert (folder / "picture.png").stat().st_size > 5000


def test_measuring_goes_on_where_it_was(measured) -> None:
    folder, taken = measured
    speed.measure_plan(folder, lambda line: None)
    path = folder / "results/rounds.json"
    kept = json.loads(path.read_text())
    path.write_text(json.dumps(kept[:-3]))
    speed.measure_plan(folder, lambda line: None)
    assert len(taken) == 15
    assert [(each["round"], each["method"]) for each in json.loads(path.read_text())] == [
        (each["round"], each["method"]) for each in kept
    ]


def test_mistakes(tmp_path) -> None:
    assert not speed.is_about_speed(tmp_path)
    (tmp_path / "plan.toml").write_text(PLAN.replace("slow_rank", "slow"))
    with pytest.raises(UserError, match="slow: Unexpected keyword argument"):
        speed.measure_plan(tmp_path, lambda line: None)
    (tmp_path / "plan.toml").write_text(PLAN)
    with pytest.raises(UserError, match="nothing was measured"):
        speed.speed_table(tmp_path)


@pytest.mark.parametrize("words", [["--at-once", "2"], ["--sb3", "python"]])
def test_words_that_would_do_nothing_are_refused(measured, words) -> None:
    folder, taken = measured
    with pytest.raises(UserError, match=f"^{words[0]} says how runs are trained: it takes --runs DIR too$"):
        run(["experiment", str(folder), *words])
    with pytest.raises(UserError, match=f"^{words[0]} says how runs are trained: .* measures speed"):
        run(["experiment", str(folder), "--runs", str(folder / "runs"), *words])
    assert not taken
