"""An arm that is learned outside of galampi, by a program that only says what it would have learned."""

import sys

import pytest

pytest.importorskip("scipy")

from galampi.errors import UserError
from galampi.experiments import outside
from galampi.experiments.outcome import read_outcome
from galampi.experiments.plan import counted_runs, read_plan
from galampi.experiments.record import read_record
from galampi.experiments.running import run_plan
from galampi.experiments.tables import table
from galampi.job import load_job
from galampi.job.shipped import find_job

PLAN = """
claim = "a"
refuted_if = "b"
job = "cartpole"
num_ranks = 4
compared = "gossip.method"
baseline = "stable-baselines3"
threshold = 100.0
seeds = [1, 2]
[settings]
total_env_steps = 1000
[axes]
"gossip.method" = ["stable-baselines3"]
[tuning]
key = "learner.learning_rate"
factors = [0.5, 2.0]
seeds = [9]
"""
# The greater its rate, the better; its seed is its first return.
PROGRAM = """#!{python}
import json, sys
asked = json.loads(sys.argv[2])
returns = [asked["seed"]] + [1e5 * asked["learning_rate"]] * 19
print(json.dumps({{"env_steps": list(range(50, 1050, 50)), "returns": returns, "version": "1.2", "duration_s": 3.0}}))
"""


@pytest.fixture
def program(tmp_path):
    """Return what stands in for the Python that has Stable-Baselines3."""
    path = tmp_path / "python"
    path.write_text(PROGRAM.format(python=sys.executable))
    path.chmod(0o755)
    return path


def test_the_job_is_said_in_its_terms() -> None:
    job = load_job(find_job("cartpole"), {"environment.num_envs": "16", "seed": "7", "learner.rollout_length": "8"})
    asked = outside.settings(job, 4)
    assert (asked["environment"], asked["num_envs"], asked["seed"]) == ("CartPole-v1", 64, 7)
    # The job's rate is for 16 simulators, and grows with the root of their number.
    assert asked["learning_rate"] == pytest.approx(2e-3 * 2)
    assert asked["is_rate_falling"]
    assert (asked["a2c"]["n_steps"], asked["a2c"]["ent_coef"], asked["reward_scale"]) == (8, 0.0, 0.02)
    unscaled = load_job(find_job("cartpole"), {"learner.learning_rate_scaling": "none"})
    assert outside.settings(unscaled, 4)["learning_rate"] == 2e-3


@pytest.mark.parametrize(
    ("job", "settings", "told"),
    [
        ("cartpole", {"learner.optimizer": "adam"}, "optimizer is 'adam'; an arm outside learns with 'rmsprop'"),
        ("cartpole", {"network.recurrent": "gru"}, "network.recurrent is 'gru'"),
        ("quick-start", {}, "environment.id is 'ALE/"),
    ],
)
def test_what_it_has_not_is_told(job, settings, told) -> None:
    with pytest.raises(UserError, match=told):
        outside.settings(load_job(find_job(job), settings), 4)


def test_an_arm_outside_is_tuned_and_recorded_like_the_others(tmp_path, program) -> None:
    (tmp_path / "plan.toml").write_text(PLAN)
    plan = read_plan(tmp_path)
    assert {run.is_outside for run in counted_runs(plan, tmp_path, {}).values()} == {True}
    told: list[str] = []
    with pytest.raises(UserError, match="2 runs are to be trained with stable-baselines3: --sb3 PYTHON"):
        run_plan(tmp_path, tmp_path / "runs", 1, told.append)
    assert run_plan(tmp_path, tmp_path / "runs", 1, told.append, program) == 0
    assert "method-stable-baselines3: factor 2" in told
    kept = read_record(tmp_path / "results/method-stable-baselines3_seed-2.h5")
    assert kept.last_returns[0] == 2
    # Twice the job's rate, for 32 simulators.
    assert kept.last_returns[-1] == pytest.approx(1e5 * 2 * 2e-3 * 2**0.5)
    assert (kept.about["stable_baselines3_version"], kept.about["duration_s"]) == ("1.2", 3.0)
    lines = [line for line in table(read_outcome(tmp_path)).splitlines() if line.startswith("  stable-baselines3")]
    assert lines[0].split()[1:3] == ["2", "2"]
    assert lines[0].split()[-2:] == ["-", "-"]
    # What is recorded is learned no more: nobody is asked.
    assert run_plan(tmp_path, tmp_path / "runs", 1, told.append) == 0


def test_a_program_that_fails_is_told(tmp_path, program) -> None:
    program.write_text(f"#!{sys.executable}\nraise ImportError('No module named stable_baselines3')\n")
    (tmp_path / "plan.toml").write_text(PLAN)
    with pytest.raises(UserError, match="ended with 1: ImportError: No module named stable_baselines3"):
        run_plan(tmp_path, tmp_path / "runs", 1, lambda line: None, program)
    assert not list(tmp_path.glob("*/*.h5"))
