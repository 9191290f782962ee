"""When a rank saves."""

import math
from itertools import pairwise
from types import SimpleNamespace

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
