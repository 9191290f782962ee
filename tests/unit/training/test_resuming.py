"""What a run that goes on may be asked to do otherwise."""

import re
from pathlib import Path

import pytest

from galampi.errors import UserError
from galampi.job import load_job
from galampi.training.resuming import _changes

BEFORE = load_job(None, {"environment.id": "CartPole-v1"})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("gossip.method", "allreduce"),
        ("environment.id", "Acrobot-v1"),
        ("network.hidden_sizes", "[8]"),
        ("learner.gamma", "0.5"),
        ("seed", "7"),
    ],
)
def test_what_the_numbers_mean_stays(key, value) -> None:
    now = load_job(None, {"environment.id": "CartPole-v1", key: value})
    with pytest.raises(UserError, match=rf"^run: {re.escape(key)} was .* start a new run with another --out$"):
        _changes(BEFORE, now, Path("run"))


def test_what_may_change_is_told() -> None:
    now = load_job(None, {"environment.id": "CartPole-v1", "learner.learning_rate": "1e-4", "gossip.topology": "ring"})
    assert _changes(BEFORE, now, Path("run")) == (
        "learner.learning_rate 0.0007 -> 0.0001; gossip.topology 'exponential' -> 'ring'"
    )
    assert _changes(BEFORE, BEFORE, Path("run")) == ""
