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
        ("seeds = [1, 2]", "seeds = [1, 2, 1]", "seeds has 1 twice"),
        ("seeds = [8, 9]", "seeds = [8, 8]", "tuning.seeds has 8 twice"),
        ("[2, 4]", "[2, 4, 4]", "axes.environment.num_envs has '4' twice"),
        ("[2, 4]", "[]", "axes.environment.num_envs: Tuple should have at least 1 item"),
        ("[0.5, 2.0]", "[2, 2.0]", "tuning.factors has 2.0 twice"),
        ("[0.5, 2.0]", "[0.5, nan]", "tuning.factors.1: Input should be"),
        ("[0.5, 2.0]", "[0.5, 0]", "tuning.factors.1: Input should be greater than 0"),
        ("threshold = 100.0", "threshold = nan", "threshold: Input should be a finite number"),
        ('"environment.num_envs" = [2, 4]', '"seed" = [2, 4]', "seed is no setting or axis of a plan"),
        ("total_env_steps = 1000", "seed = 3", "seed is no setting or axis of a plan"),
        ("num_ranks = 2", 'num_ranks = 2\nstatistic = "faults"', "faults are missing"),
        (
            '"environment.num_envs" = [2, 4]\n"gossip.method" = ["push-sum", "allreduce"]',
            'fault = ["no"]\n"gossip.method" = ["stable-baselines3", "allreduce"]\n[faults]\nno = []',
            "faults are for our own runs; leave 'stable-baselines3' out of axes.gossip.method",
        ),
        ("num_ranks = 2", 'num_ranks = 1\nstatistic = "distance"', "num_ranks is 1; distances are between two ranks"),
        (
            "num_ranks = 2",
            'num_ranks = 2\nleft_out = [{ "gossip.method" = "gala" }]',
            "left_out names 'gala'; must be a value of the axis 'gossip.method'",
        ),
        (
            "num_ranks = 2",
            'num_ranks = 2\nleft_out = [{ "gossip.method" = "push-sum" }, { "gossip.method" = "allreduce" }]',
            "left_out leaves no arm",
        ),
        ("num_ranks = 2", "num_ranks = 2\nsize = 3", "size: Extra inputs are not permitted"),
    ],
)
def test_a_plan_that_is_none_is_told_in_a_line(tmp_path, before, after, told) -> None:
    with pytest.raises(UserError, match=re.escape(told)) as raised:
        read(tmp_path, PLAN.replace(before, after))
    assert str(raised.value).startswith(f"{tmp_path / 'plan.toml'}: ")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("key", "told"),
    [
        ("learner.learing_rate", "which is not a key of a job; did you mean 'learner.learning_rate'?"),
        ("learner", "which is not a key of a job"),
        ("learner.learning_rate.x", "which is not a key of a job"),
        ("gossip.topology", "must be a setting whose value is a number, not 'exponential'"),
        ("network.hidden_sizes", "must be a setting whose value is a number"),
        ("learner.normalize_observations", "must be a setting whose value is a number, not True"),
    ],
)
def test_what_cannot_be_tuned_is_told(tmp_path, key, told) -> None:
    plan = read(tmp_path, PLAN.replace('key = "learner.learning_rate"', f'key = "{key}"'))
    with pytest.raises(UserError, match=re.escape(told)) as raised:
        tuning_runs(plan, tmp_path)
    assert str(raised.value).startswith(f"{tmp_path / 'plan.toml'}: tuning.key is {key!r}")


def test_whole_numbers_are_tuned_too(tmp_path) -> None:
    plan = read(tmp_path, PLAN.replace("learner.learning_rate", "learner.rollout_length"))
    rollout = next(iter(counted_runs(plan, tmp_path, {}).values())).job.learner.rollout_length
    lengths = {run.job.learner.rollout_length for run in tuning_runs(plan, tmp_path).values()}
    assert lengths == {rollout // 2, 2 * rollout}


def test_values_are_those_of_toml(tmp_path) -> None:
    text = PLAN.replace('"learner.normalize_observations" = true', "")
    text = text.replace('"environment.num_envs" = [2, 4]', '"learner.normalize_observations" = [true, false]')
    tables = """
        "environment.kwargs" = { size = 3, name = 'a "b"', parts = [1, 2] }
        [settings.learner]
        gamma = 0.5
        [axes]
    """
    plan = read(tmp_path, text.replace("[axes]", tables))
    assert list(plan.groups) == [f"learner.normalize_observations = {value}" for value in ("true", "false")]
    job = counted_runs(plan, tmp_path, {})["normalize_observations-true_method-push-sum_seed-1"].job
    assert job.learner.normalize_observations is True
    assert job.learner.gamma == 0.5
    assert job.environment.kwargs == {"size": 3, "name": 'a "b"', "parts": (1, 2)}


def test_text_that_looks_like_a_number_stays_text(tmp_path) -> None:
    axes = '[axes]\n"environment.kwargs.level" = ["1", 2]\n'
    settings = '[settings]\nname = "7"\n"environment.kwargs.seed" = "0x10"\n'
    plan = read(tmp_path, PLAN.replace("[settings]\n", settings).replace("[axes]\n", axes))
    jobs = [run.job for run in counted_runs(plan, tmp_path, {}).values()]
    assert {job.environment.kwargs["level"] for job in jobs} == {"1", 2}
    assert {(job.environment.kwargs["seed"], job.name) for job in jobs} == {("0x10", "7")}
    assert "level-1_num_envs-2_method-push-sum" in plan.arms


def test_a_value_that_is_not_allowed_is_the_plans(tmp_path) -> None:
    plan = read(tmp_path, PLAN.replace("total_env_steps = 1000", '"learner.gamma" = 7'))
    with pytest.raises(UserError, match=r"plan\.toml: learner\.gamma is 7; must be"):
        counted_runs(plan, tmp_path, {})


def test_arms_that_would_have_one_name_have_two(tmp_path) -> None:
    ids = '["CartPole-v1", "phys2d/CartPole-v1"]'
    plan = read(tmp_path, PLAN.replace('"environment.num_envs" = [2, 4]', f'"environment.id" = {ids}'))
    assert [chosen["environment.id"] for chosen in plan.arms.values()] == [
        "CartPole-v1", "CartPole-v1", "phys2d/CartPole-v1", "phys2d/CartPole-v1",
    ]  # fmt: skip
    assert "CartPole-v1_method-allreduce-" in plan.arms


def test_factors_that_hardly_differ_have_names_of_their_own(tmp_path) -> None:
    plan = read(tmp_path, PLAN.replace("[0.5, 2.0]", "[1.0000001, 1.0000002, 1, 0.5]"))
    assert len(tuning_runs(plan, tmp_path)) == 4 * 4 * 2
    assert "num_envs-2_method-push-sum_x1_seed-8" in tuning_runs(plan, tmp_path)


def test_a_plan_in_another_encoding(tmp_path) -> None:
    (tmp_path / "plan.toml").write_bytes(PLAN.replace('"a"', '"\u00e4"').encode("latin-1"))
    with pytest.raises(UserError, match="cannot be read: not a text file in UTF-8"):
        read_plan(tmp_path)


def test_no_plan(tmp_path) -> None:
    with pytest.raises(UserError, match=r"plan\.toml: cannot be read: No such file or directory"):
        read_plan(tmp_path)
