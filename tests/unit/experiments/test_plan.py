"""Plans: which runs they ask for, and how their mistakes are told."""

import re
from pathlib import Path

import pytest

from galampi.errors import UserError
from galampi.experiments.plan import counted_runs, read_plan, tuning_runs

PLAN = """
claim = "a"
refuted_if = "b"
job = "cartpole"
num_ranks = 2
compared = "gossip.method"
baseline = "allreduce"
threshold = 100.0
seeds = [1, 2]

[settings]
total_env_steps = 1000
"learner.normalize_observations" = true

[axes]
"environment.num_envs" = [2, 4]
"gossip.method" = ["push-sum", "allreduce"]

[tuning]
key = "learner.learning_rate"
factors = [0.5, 2.0]
seeds = [8, 9]
"""


def read(folder: Path, text: str = PLAN):
    (folder / "plan.toml").write_text(text)
    return read_plan(folder)


def test_every_arm_is_trained_with_every_seed_seed_by_seed(tmp_path) -> None:
    plan = read(tmp_path)
    runs = counted_runs(plan, tmp_path, {"num_envs-4_method-push-sum": 2.0})
    assert list(runs) == [
        f"num_envs-{n}_method-{m}_seed-{s}" for s in (1, 2) for n in (2, 4) for m in ("push-sum", "allreduce")
    ]
    job = runs["num_envs-4_method-push-sum_seed-2"].job
    assert (job.seed, job.environment.num_envs, job.gossip.method, job.total_env_steps) == (2, 4, "push-sum", 1000)
    assert job.learner.normalize_observations
    # The job's own rate is 0.002.
    assert job.learner.learning_rate == 4e-3
    assert runs["num_envs-4_method-allreduce_seed-2"].job.learner.learning_rate == 2e-3


def test_the_tuning_has_seeds_of_its_own(tmp_path) -> None:
    runs = tuning_runs(read(tmp_path), tmp_path)
    assert len(runs) == 4 * 2 * 2
    assert {run.job.seed for run in runs.values()} == {8, 9}
    assert {run.job.learner.learning_rate for run in runs.values()} == {1e-3, 4e-3}


def test_what_is_compared_has_the_rest_in_common(tmp_path) -> None:
    groups = read(tmp_path).groups
    assert list(groups) == ["environment.num_envs = 2", "environment.num_envs = 4"]
    assert groups["environment.num_envs = 4"] == {
        "push-sum": "num_envs-4_method-push-sum",
        "allreduce": "num_envs-4_method-allreduce",
    }


def test_an_arm_that_is_left_out_is_in_no_group(tmp_path) -> None:
    left_out = 'left_out = [{ "gossip.method" = "push-sum", "environment.num_envs" = 4 }]\n'
    plan = read(tmp_path, PLAN.replace("seeds = [1, 2]", left_out + "seeds = [1, 2]"))
    assert len(plan.arms) == 3
    assert list(plan.groups["environment.num_envs = 2"]) == ["push-sum", "allreduce"]
    assert list(plan.groups["environment.num_envs = 4"]) == ["allreduce"]
    assert len(tuning_runs(plan, tmp_path)) == 3 * 2 * 2


def test_a_job_beside_the_plan_comes_first(tmp_path) -> None:
    (tmp_path / "cartpole").write_text('name = "mine"\n[environment]\nid = "CartPole-v1"')
    assert {run.job.name for run in counted_runs(read(tmp_path), tmp_path, {}).values()} == {"mine"}


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        (
            'baseline = "allreduce"',
            'baseline = "gala"',
            "baseline is 'gala'; must be a value of the axis 'gossip.method'",
        ),
        ("seeds = [8, 9]", "seeds = [2, 9]", "seeds of the tuning must not be seeds of the runs that count"),
        ("num_ranks = 2", "num_ranks = 2\nleft_out = [{ size = 3 }]", "left_out names 'size'; must name axes"),
        ("num_ranks = 2", "", "num_ranks: Field required"),
        ("num_ranks = 2", "num_ranks = = 2", "not TOML"),
        ("num_ranks = 2", "num_ranks = 2\nsize = 3", "size: Extra inputs are not permitted"),
    ],
)
def test_a_plan_that_is_none_is_told_in_a_line(tmp_path, before, after, told) -> None:
    with pytest.raises(UserError, match=re.escape(told)) as raised:
        read(tmp_path, PLAN.replace(before, after))
    assert str(raised.value).startswith(f"{tmp_path / 'plan.toml'}: ")
    assert "\n" not in str(raised.value)


def test_no_plan(tmp_path) -> None:
    with pytest.raises(UserError, match=r"plan\.toml: cannot be read: No such file or directory"):
        read_plan(tmp_path)
