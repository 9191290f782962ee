"""What a rank says of its job before it trains."""

from galampi.job import parse_job
from galampi.training.setup import _with_means_of_their_own


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
