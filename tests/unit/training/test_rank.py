"""When a rank saves."""

import math
import time
from itertools import pairwise
from types import SimpleNamespace

import pytest

from galampi.job import load_job
from galampi.training.rank import Rank


def saves(number, num_ranks, job, num_updates=400):
    """Return the updates after which a rank saves."""
    saved: list[int] = []
    rank = SimpleNamespace(job=job, comm=SimpleNamespace(rank=number, size=num_ranks), _checkpoint_due_s=math.inf)
    rank.save = lambda exact: saved.append(rank.update)
    for rank.update in range(1, num_updates + 1):
        Rank.save_if_due(rank)
        rank._checkpoint_due_s = math.inf
    return saved


def test_ranks_save_at_updates_of_their_own() -> None:
    job = load_job(None, {"checkpoint.every_updates": "100"})
    each = [saves(number, 50, job) for number in range(50)]
    assert each[0] == [100, 200, 300, 400]
    moments = [update for saved in each for update in saved]
    assert max(moments.count(update) for update in moments) == 1
    assert all(later - earlier == 100 for saved in each for earlier, later in pairwise(saved))


def test_a_rank_that_saves_every_update_does() -> None:
    job = load_job(None, {"checkpoint.every_updates": "1"})
    assert saves(3, 8, job, num_updates=5) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(("number", "at_s"), [(0, [30, 330, 630]), (1, [50, 350, 650])])
def test_ranks_save_by_the_clock_too_each_at_a_moment_of_its_own_and_first_early(monkeypatch, number, at_s) -> None:
    """Updates of 10 s, and 300 s between two checkpoints; of two ranks one first saves after 30 s, one after 45."""
    clock, saved = [0], []
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    rank = SimpleNamespace(job=load_job(None, {}), comm=SimpleNamespace(rank=number, size=2), energy=None)
    rank.save = lambda exact: saved.append(clock[0])
    Rank.begin(rank)
    for rank.update in range(1, 70):
        clock[0] += 10
        Rank.save_if_due(rank)
    assert saved == at_s
