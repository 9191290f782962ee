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
