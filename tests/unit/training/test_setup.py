"""What a rank says of its job before it trains."""

import subprocess
from types import SimpleNamespace

import numpy as np
import pytest

from galampi.errors import UserError
from galampi.job import parse_job
from galampi.training import setup
from galampi.training.resuming import Start
from galampi.training.setup import _gives_up, _with_means_of_their_own, make_learning


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


@pytest.mark.parametrize(
    ("waited_s", "own_s", "caught", "announced", "gives_up"),
    [
        (59, 0.1, None, False, False),
        (61, 0.1, None, False, True),
        # It is itself as slow.
        (599, 300, None, False, False),
        (601, 300, None, False, True),
        (4, 300, "SIGTERM", False, False),
        (6, 300, "SIGTERM", False, True),
        (0, 0.1, None, True, True),
    ],
)
def test_a_slow_rank_is_waited_for_by_those_that_are_as_slow(waited_s, own_s, caught, announced, gives_up) -> None:
    job = parse_job("", "test")
    signals, mailboxes = SimpleNamespace(caught=caught), SimpleNamespace(stop_announced=announced)
    assert _gives_up(waited_s, own_s, job, signals, mailboxes) is gives_up


def test_a_policy_of_another_network_names_its_run() -> None:
    job = parse_job("precision = 'float32'\n[environment]\nid = 'CartPole-v1'\nnum_envs = 1\n", "test")
    placement = SimpleNamespace(num_torch_threads=1, num_threads=1, rank_on_node=0, num_ranks_on_node=1)
    start = Start(learner={"z": np.zeros(3, np.float32)}, origin={"origin": "/runs/first"})
    with pytest.raises(UserError, match=r"^/runs/first: its policy does not fit this environment: .* 3 parameters"):
        make_learning(job, placement, 0, 1, start)


def test_the_commit_is_that_of_this_package_and_of_no_checkout_around_it(tmp_path, monkeypatch) -> None:
    """As that of a project in whose folder the virtual environment lies."""
    module = tmp_path / ".venv/galampi/setup.py"
    module.parent.mkdir(parents=True)
    module.touch()

    def git(*words):
        identity = ("-c", "user.name=a", "-c", "user.email=a@b")
        done = subprocess.run(["git", *identity, *words], cwd=tmp_path, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    git("init", "--quiet")
    git("commit", "--quiet", "--allow-empty", "--message", "theirs")
    monkeypatch.setattr(setup, "__file__", str(module))
    assert setup._git_commit() == ""
    git("add", "--force", ".venv")
    assert setup._git_commit() == git("rev-parse", "HEAD")
