"""The point of reference outside: Stable-Baselines3's A2C learns what a job says, in one process."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from galampi.analysis.statistics import Episodes
from galampi.bench.program import Program
from galampi.errors import UserError
from galampi.job import Job
from galampi.job.settings import Environment, Learner, Network

_LEAST_LIMIT_S = 3600.0
_SLOWEST_STEPS_PER_S = 20
"""What it makes at the very least, where it has not come to a standstill."""
_KNOWN: dict[type[Environment | Learner | Network], set[str]] = {
    Environment: {"id", "num_envs"},
    Learner: {
        "rollout_length",
        "gamma",
        "gae_lambda",
        "learning_rate",
        "learning_rate_scaling",
        "learning_rate_schedule",
        "rmsprop_epsilon",
        "entropy_coefficient",
        "value_coefficient",
        "max_grad_norm",
        "reward_scale",
    },
    Network: {"hidden_sizes"},
}
"""Settings that it has too."""


def settings(job: Job, num_ranks: int) -> dict[str, Any]:
    """Say in Stable-Baselines3's terms what a job asks of all ranks together.

    Its learner is its own: policy and value have a network each, of the job's sizes.

    Args:
        job: The job; of vectors of numbers, by RMSprop.
        num_ranks: Ranks whose simulators it has.

    Raises:
        UserError: The job has a setting that is not translated.
    """
    for section in (job.environment, job.learner, job.network):
        for key, field in type(section).model_fields.items():
            if key not in _KNOWN[type(section)] and getattr(section, key) != field.default:
                name = type(section).__name__.lower()
                raise UserError(
                    f"{name}.{key} is {getattr(section, key)!r}; an arm outside learns with {field.default!r}"
                )
    if job.environment.is_atari:
        raise UserError(f"environment.id is {job.environment.id!r}; an arm outside learns from vectors of numbers")
    learner, num_envs = job.learner, job.environment.num_envs * num_ranks
    rate = learner.learning_rate
    if learner.learning_rate_scaling == "sqrt":
        rate *= math.sqrt(num_envs / 16)
    return {
        "environment": job.environment.id,
        "num_envs": num_envs,
        "total_env_steps": job.total_env_steps,
        "seed": job.seed,
        "reward_scale": learner.reward_scale,
        "learning_rate": rate,
        "is_rate_falling": learner.learning_rate_schedule == "linear",
        "hidden_sizes": list(job.network.hidden_sizes),
        "a2c": {
            "n_steps": learner.rollout_length,
            "gamma": learner.gamma,
            "gae_lambda": learner.gae_lambda,
            "ent_coef": learner.entropy_coefficient,
            "vf_coef": learner.value_coefficient,
            "max_grad_norm": learner.max_grad_norm,
            "rms_prop_eps": learner.rmsprop_epsilon,
        },
    }


def learn(python: Path, job: Job, num_ranks: int) -> tuple[Episodes, dict[str, Any]]:
    """Let Stable-Baselines3's A2C learn what a job says.

    Args:
        python: Of an environment that has it.
        job: The job.
        num_ranks: Ranks whose simulators it has.

    Returns:
        The episodes; and version and duration, s.

    Raises:
        UserError: The job is not translated, or the program failed.
    """
    command = [str(python), str(Path(__file__).with_name("sb3_learn.py")), json.dumps(settings(job, num_ranks))]
    with Program(command) as program:
        (found,) = program.finish(max(_LEAST_LIMIT_S, job.total_env_steps / _SLOWEST_STEPS_PER_S))
    returns, env_steps = (np.array(found[name], np.float64) for name in ("returns", "env_steps"))
    about = {"stable_baselines3_version": found["version"], "duration_s": found["duration_s"]}
    return Episodes(np.full(len(returns), np.nan), env_steps, returns), about
