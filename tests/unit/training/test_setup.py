"""What a rank says of its job before it trains."""

from types import SimpleNamespace

import numpy as np
import pytest

from galampi.errors import UserError
from galampi.job import parse_job
from galampi.training.resuming import Start
from galampi.training.setup import _with_means_of_their_own, make_learning


def test_wrappers_that_normalise_by_what_one_simulator_has_seen_are_named() -> None:
    text = """
[environment]
id = "CartPole-v1"
wrappers = ["gymnasium.wrappers:NormalizeReward", "mine:NormalizeReward",
    { wrapper = "gymnasium.wrappers:NormalizeObservation" }]
"""
    assert _with_means_of_their_own(parse_job(text, "test")) == [
        "gymnasium.wrappers:NormalizeReward",
        "gymnasium.wrappers:NormalizeObservation",
    ]
    assert _with_means_of_their_own(parse_job("", "test")) == []


def test_a_policy_of_another_network_names_its_run() -> None:
    job = parse_job("precision = 'float32'\n[environment]\nid = 'CartPole-v1'\nnum_envs = 1\n", "test")
    placement = SimpleNamespace(num_torch_threads=1, num_threads=1, rank_on_node=0, num_ranks_on_node=1)
    start = Start(learner={"z": np.zeros(3, np.float32)}, origin={"origin": "/runs/first"})
    with pytest.raises(UserError, match=r"^/runs/first: its policy does not fit this environment: .* 3 parameters"):
        make_learning(job, placement, 0, 1, start)
