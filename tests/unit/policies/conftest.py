"""Runs as training leaves them, without training."""

from pathlib import Path

import numpy as np
import pytest
import torch

from galampi.environments import make_simulators
from galampi.job import dump_job, parse_job
from galampi.learning import Learner
from galampi.results import JobFile, save_checkpoint

torch.set_num_threads(1)


def learner_of(job) -> Learner:
    simulators = make_simulators(
        job.environment.model_copy(update={"num_envs": 1}), seed=0, num_threads=1, life_ends_return=False
    )
    simulators.close()
    return Learner(
        job,
        simulators.single_observation_space,
        simulators.single_action_space,
        total_simulators=1,
        seed=job.seed,
        action_seed=0,
        device="cpu",
        precision="float32",
    )


@pytest.fixture
def store(tmp_path: Path):
    """Write a run of one or more ranks, each with a weight and parameters, and return its folder."""

    def write(environment_id, *, z=None, weights=(1.0,), kept=None, settings=None) -> Path:
        job = parse_job("", "test", {"environment.id": environment_id, **(settings or {})})
        own = learner_of(job).z
        if z is None:
            # The policy head starts near 0; this makes the actions depend on what is seen.
            z = own + 0.05 * np.random.default_rng(1).standard_normal(own.size, np.float32)
        out = tmp_path / "run"
        JobFile.create(out, {"job_toml": dump_job(job)}, len(weights))
        for rank, weight in enumerate(weights):
            state = {
                "num_ranks": len(weights),
                "weight": weight,
                "counters": {"update": 70 + rank, "env_steps": 1000},
                "learner": {"z": np.asarray(z + rank, np.float32)},
            }
            save_checkpoint(out / f"checkpoint/rank-{rank:04d}.h5", state)
            if kept:
                state["learner"]["z"] = state["learner"]["z"] + 10
                save_checkpoint(out / f"kept/update-{kept:08d}/rank-{rank:04d}.h5", state)
        return out

    return write


@pytest.fixture
def constant_policy():
    """Return parameters of a policy that always takes one action of a discrete environment."""

    def parameters(environment_id, action) -> np.ndarray:
        job = parse_job(f'[environment]\nid = "{environment_id}"', "test")
        learner = learner_of(job)
        views = learner.policy.parameters.working
        learner.z[:] = 0
        # The last blocks are: policy weight, policy bias, value weight, value bias, free parameters.
        after_bias = sum(view.numel() for view in views[-3:])
        learner.z[learner.z.size - after_bias - views[-4].numel() + action] = 1
        return learner.z.copy()

    return parameters
