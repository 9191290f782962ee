"""The bound on the distances: its constants by hand, and against simulations of the exchange it speaks of."""

import numpy as np
import pytest
from made_runs import make_run

from galampi.job import parse_job
from galampi.results import open_run
from galampi.results.ball import Bound, Mixing, bound, constants, decay

scipy = pytest.importorskip("scipy", reason="not installed; `pip install galampi[report]` brings it")

SETTINGS = [
    Mixing(2, (1,), False, 1, 1),
    Mixing(4, (1, 2), False, 1, 3),
    Mixing(8, (1, 2, 4), False, 2, 2),
    Mixing(5, (1,), False, 1, 1),
    Mixing(6, (1, 2, 3, 4, 5), True, 1, 2),
]


def simulate(mixing: Mixing, delay: int, steps: np.ndarray) -> np.ndarray:
    """Run the exchange with all ranks in step; return the stacked distance to the mean after each update."""
    sent = [np.zeros(steps.shape[1:])] * delay
    z = np.zeros(steps.shape[1:])
    distances = []
    for update in range(len(steps)):
        z = z + steps[update]
        event, rest = divmod(update, mixing.updates_per_average)
        if rest == 0:
            hops = mixing.hops if mixing.together else (mixing.hops[event % len(mixing.hops)],)
            z = (z + sum(np.roll(sent[-delay], hop, axis=0) for hop in hops)) / (1 + len(hops))
        sent.append(z)
        distances.append(np.linalg.norm(z - z.mean(axis=0)))
    return np.array(distances)


def test_two_ranks_by_hand():
    # A step counts half at once, and the other rank has the other half one update later.
    np.testing.assert_allclose(decay(Mixing(2, (1,), False, 1, 1)), [0.5, 0], atol=1e-12)


def test_without_delay_an_exponential_graph_forgets_after_its_hops():
    np.testing.assert_allclose(decay(Mixing(8, (1, 2, 4), False, 1, 1)), [0.5, 0.5, 0.5, 0], atol=1e-12)


@pytest.mark.parametrize("mixing", SETTINGS)
def test_one_step_decays_as_told(mixing):
    rng = np.random.default_rng(0)
    told = decay(mixing, 40)
    told = np.append(told, np.zeros(40 - len(told)))
    for delay in range(1, mixing.delay + 1):
        for phase in range(len(mixing.hops) * mixing.updates_per_average):
            steps = np.zeros((phase + 40, mixing.num_ranks, 3))
            steps[phase] = rng.normal(size=steps.shape[1:])
            seen = simulate(mixing, delay, steps)[phase:] / np.linalg.norm(steps)
            assert (seen <= told + 1e-9).all()


@pytest.mark.parametrize("mixing", SETTINGS)
def test_the_bound_holds_in_the_exchange_it_speaks_of(mixing):
    rng = np.random.default_rng(1)
    alpha, beta = constants(decay(mixing))
    steps = rng.normal(size=(200, mixing.num_ranks, 4)) * rng.uniform(0, 1, (200, 1, 1))
    norms = np.linalg.norm(steps, axis=(1, 2))
    limit = [alpha * sum(beta ** (k + 1 - s) * norms[s] for s in range(k + 1)) for k in range(200)]
    for delay in range(1, mixing.delay + 1):
        assert (simulate(mixing, delay, steps) <= limit).all()


def test_constants_cover_the_decay_and_are_tight():
    norms = 0.7 * 0.9 ** np.arange(1, 100)
    alpha, beta = constants(norms)
    assert (alpha * beta ** np.arange(1, 100) >= norms * (1 - 1e-9)).all()
    assert alpha * beta / (1 - beta) == pytest.approx(0.7 * 0.9 / 0.1, rel=0.02)


def test_bound_of_a_recorded_run(tmp_path):
    run = open_run(make_run(tmp_path))
    found = bound(run, parse_job(run.job_toml, "test"))
    assert isinstance(found, Bound)
    # One message of age 0.1 s an update of 0.1 s: every update, one update old.
    assert found.mixing == Mixing(2, (1,), False, 1, 1)
    assert found.at_s[-1] == 20.0
    # Steps of norm 0.2 on both ranks: the geometric sum of a stacked norm of 0.2 sqrt(2).
    radius = found.alpha * found.beta / (1 - found.beta) * 0.2 * np.sqrt(2)
    assert found.values[-1] == pytest.approx(radius, rel=1e-6)


@pytest.mark.parametrize(
    ("settings", "num_ranks", "reason"),
    [
        ({"gossip.method": "none"}, 2, "gossip.method is none"),
        ({"gossip.method": "allreduce"}, 2, "gossip.method is allreduce"),
        ({}, 1, "there is one rank"),
    ],
)
def test_no_bound_has_a_reason(tmp_path, settings, num_ranks, reason):
    run = open_run(make_run(tmp_path, settings=settings, num_ranks=num_ranks, num_updates=10))
    found = bound(run, parse_job(run.job_toml, "test"))
    assert isinstance(found, str)
    assert reason in found
