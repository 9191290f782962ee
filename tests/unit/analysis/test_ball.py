"""The bound on the distances: its constants by hand, and against simulations of ranks of unequal speed."""

import numpy as np
import pytest
from made_runs import make_run
from simulated_exchange import NUM_PARAMETERS, simulate, write_rank

from galampi.analysis import ball
from galampi.analysis import exchange as telling
from galampi.analysis.ball import Bound, bound, constants
from galampi.analysis.exchange import replay
from galampi.errors import UntoldError
from galampi.job import dump_job, parse_job
from galampi.results import JobFile, open_run

SPEEDS = {2: [1, 1], 3: [1, 1.3, 4], 5: [1, 1.1, 1.2, 1.3, 20]}
METHODS = [{}, {"gossip.method": "gala"}, {"gossip.topology": "complete"}, {"gossip.topology": "ring"}]


def assert_parameters(exchange, simulated):
    """Average as the exchange says, and compare with what every rank had."""
    assert len(exchange.rank) == sum(len(steps) for steps in simulated.steps)
    z = {-1: simulated.start.astype(np.float64)}
    num_made = [0] * len(simulated.steps)
    for update, rank in enumerate(exchange.rank):
        step = simulated.steps[rank][num_made[rank]]
        assert exchange.step_norm[update] == pytest.approx(np.linalg.norm(step))
        shares = [share for _, share in exchange.messages[update]]
        assert exchange.keep[update] + sum(shares) == pytest.approx(1)
        z[update] = exchange.keep[update] * z[exchange.before[update]] + step
        z[update] = z[update] + sum(share * z[source] for source, share in exchange.messages[update])
        num_made[rank] += 1
    for (rank, number), update in exchange.by_update.items():
        state = z[update]
        if exchange.averages_last:
            # What was measured after an update has averaged what came after it had sent.
            if (messages := exchange.afterwards.get(update)) is None:
                continue
            state = (1 - sum(share for _, share in messages)) * state
            state = state + sum(share * z[source] for source, share in messages)
        np.testing.assert_allclose(state, simulated.states[rank][number - 1], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("settings", METHODS)
@pytest.mark.parametrize("num_ranks", SPEEDS)
def test_replay_gives_every_rank_the_parameters_it_had(tmp_path, settings, num_ranks):
    simulated = simulate(tmp_path, num_ranks=num_ranks, slowness=SPEEDS[num_ranks], settings=settings)
    run = open_run(tmp_path)
    exchange = replay(run, parse_job(run.job_toml, "test"))
    assert_parameters(exchange, simulated)
    assert sum(map(len, exchange.messages)) > len(exchange.rank) / 10


@pytest.mark.parametrize("settings", METHODS)
@pytest.mark.parametrize("num_ranks", SPEEDS)
@pytest.mark.parametrize("kind", ["random", "apart"])
def test_the_bound_holds_whatever_speeds_and_weights(tmp_path, settings, num_ranks, kind):
    simulate(tmp_path, num_ranks=num_ranks, slowness=SPEEDS[num_ranks], settings=settings, kind=kind)
    run = open_run(tmp_path)
    distance = run.consensus_distance()
    found = bound(run, parse_job(run.job_toml, "test"), distance)
    assert isinstance(found, Bound)
    assert len(found.moments) > 20
    stacked = np.linalg.norm(distance.to_mean[found.moments], axis=1)
    assert (stacked <= found.sharp * (1 + 1e-5)).all()
    assert (found.sharp <= found.values * (1 + 1e-5)).all()
    # Under Algorithm 1 what was sent before an averaging comes with the opposite sign, so that steps cancel.
    if kind == "apart" and num_ranks == 2 and "gossip.method" not in settings:
        # Two ranks that always step in opposite directions are as far apart as steps of that norm can take them.
        np.testing.assert_allclose(stacked, found.sharp, rtol=1e-3)
    # It is no bound that anything would keep to.
    assert (stacked > 0.1 * found.sharp).mean() > 0.5


def test_constants_cover_the_decay_and_are_tight():
    norms = 0.7 * 0.9 ** np.arange(1, 100)
    alpha, beta = constants(norms)
    assert (alpha * beta ** np.arange(1, 100) >= norms * (1 - 1e-9)).all()
    assert alpha * beta / (1 - beta) == pytest.approx(0.7 * 0.9 / 0.1, rel=0.02)


def test_the_sum_of_the_proposition_as_it_is_written(tmp_path):
    simulate(tmp_path, num_ranks=3, slowness=SPEEDS[3])
    run = open_run(tmp_path)
    job, distance = parse_job(run.job_toml, "test"), run.consensus_distance()
    found, exchange = bound(run, job, distance), replay(run, job)
    assert isinstance(found, Bound)
    for moment, value in zip(found.moments, found.values, strict=True):
        k = max(exchange.index(rank, int(update)) for rank, update in enumerate(distance.updates[moment]))
        total = sum(found.beta ** (k + 1 - s) * exchange.step_norm[s] for s in range(k + 1))
        assert value == pytest.approx(found.alpha * total, rel=1e-9)


def test_a_running_job_is_told_as_far_as_its_files_go(tmp_path):
    simulate(tmp_path, num_ranks=3, slowness=SPEEDS[3], num_rows_missing=[0, 30, 0])
    run = open_run(tmp_path)
    exchange = replay(run, parse_job(run.job_toml, "test"))
    num_rows = sum(rank.updates.num_rows for rank in run.ranks)
    assert num_rows / 2 < len(exchange.rank) < num_rows


def test_norms_that_were_not_recorded_follow_the_gradient(tmp_path):
    simulate(tmp_path, num_ranks=2, slowness=[1, 1.3], norm_every=8)
    run = open_run(tmp_path)
    exchange = replay(run, parse_job(run.job_toml, "test"))
    simulate(tmp_path / "all", num_ranks=2, slowness=[1, 1.3], norm_every=1)
    run = open_run(tmp_path / "all")
    np.testing.assert_allclose(exchange.step_norm, replay(run, parse_job(run.job_toml, "test")).step_norm, rtol=1e-6)


def test_a_message_of_another_age_is_noticed(tmp_path):
    simulate(tmp_path, num_ranks=2, slowness=[1, 1.3], age_error_s=0.01)
    run = open_run(tmp_path)
    with pytest.raises(UntoldError, match="no message that was sent has the age recorded"):
        replay(run, parse_job(run.job_toml, "test"))


def write_rows(out, rank, num_ranks, rows):
    """Write the file of a rank whose updates have these times, messages averaged so far and ages."""
    constant = {"step_norm": 1.0, "grad_norm": 1.0, "weight": 0.5, "skipped": 0}
    constant |= {"step_scale": 1.0, "step_weight": 1.0, "moved": 1.0}
    made = [
        {**constant, "time_s": time_s, "sent": update, "received": received, "message_age_s": age_s}
        for update, (time_s, received, age_s) in enumerate(rows, 1)
    ]
    peers = [each % num_ranks for each in range(rank + 1, rank + num_ranks)]
    write_rank(out / f"rank-{rank:04d}.h5", rank, made, np.zeros((len(made), NUM_PARAMETERS)), out_peers=peers)


def test_messages_that_wait_for_each_other_are_noticed(tmp_path):
    JobFile.create(tmp_path, {"job_toml": dump_job(parse_job("", "test"))}, 2)
    # Each rank's first update averaged what the other's first one sent.
    write_rows(tmp_path, 0, 2, [(1.0, 1, -0.001)])
    write_rows(tmp_path, 1, 2, [(1.001, 1, 0.001)])
    run = open_run(tmp_path)
    with pytest.raises(UntoldError, match="wait for each other"):
        replay(run, parse_job(run.job_toml, "test"))


def test_ranks_that_have_just_averaged_to_the_same_are_within_a_bound_of_nothing(tmp_path):
    job = parse_job("", "test", {"gossip.method": "gala"})
    JobFile.create(tmp_path, {"job_toml": dump_job(job)}, 2)
    # After its first update each averages what the other sent; the second ones average nothing.
    write_rows(tmp_path, 0, 2, [(1.0, 1, -0.001), (1.5, 1, np.nan)])
    write_rows(tmp_path, 1, 2, [(1.001, 1, 0.001), (1.501, 1, np.nan)])
    run = open_run(tmp_path)
    found = bound(run, job, run.consensus_distance())
    assert isinstance(found, Bound)
    # Steps of norm 1 that each move one rank of two by half of it off the mean, twice.
    np.testing.assert_allclose(found.sharp, [0, 2 * np.sqrt(0.5)])
    assert (found.sharp <= found.values * (1 + 1e-9)).all()


def test_ranks_that_were_the_same_whenever_they_were_seen_have_no_bound(tmp_path):
    job = parse_job("", "test", {"gossip.method": "gala"})
    JobFile.create(tmp_path, {"job_toml": dump_job(job)}, 2)
    write_rows(tmp_path, 0, 2, [(1.0, 1, -0.001)])
    write_rows(tmp_path, 1, 2, [(1.001, 1, 0.001)])
    run = open_run(tmp_path)
    found = bound(run, job, run.consensus_distance())
    assert isinstance(found, str)
    assert "the same parameters" in found


def test_messages_of_many_peers_are_told_apart_in_a_moment(tmp_path):
    num_ranks, num_updates = 33, 40
    job = parse_job("", "test", {"gossip.topology": "complete"})
    JobFile.create(tmp_path, {"job_toml": dump_job(job)}, num_ranks)
    starts_s = [0.0031 * rank + 1e-5 * rank**2 for rank in range(num_ranks)]
    times_s = [[start_s + 0.1 * update for update in range(num_updates)] for start_s in starts_s]
    for rank in range(num_ranks):
        rows = []
        # In its last update but one, it averages sixteen messages at once: of hops 1 to 16.
        for update, time_s in enumerate(times_s[rank]):
            if update < num_updates - 2:
                rows.append((time_s, 0, np.nan))
            else:
                ages = [time_s - times_s[(rank - hop) % num_ranks][hop - 1] for hop in range(1, 17)]
                rows.append((time_s, 16, float(np.mean(ages)) if update == num_updates - 2 else np.nan))
        write_rows(tmp_path, rank, num_ranks, rows)
    run = open_run(tmp_path)
    assert max(map(len, replay(run, job).messages)) == 16


def test_messages_that_fit_in_too_many_ways_are_not_told(tmp_path):
    num_ranks = 33
    job = parse_job("", "test", {"gossip.topology": "complete"})
    JobFile.create(tmp_path, {"job_toml": dump_job(job)}, num_ranks)
    for rank in range(num_ranks):
        rows = [(0.1 * update + 0.001 * rank, 0, np.nan) for update in range(40)]
        # No sixteen messages are that old.
        rows.append((4.1 + 0.001 * rank, 16, 1000.0))
        write_rows(tmp_path, rank, num_ranks, rows)
    run = open_run(tmp_path)
    with pytest.raises(UntoldError, match="more than 10,000 choices"):
        replay(run, job)


@pytest.mark.parametrize("part", [0.3, 0.001])
def test_a_slow_exchange_has_fewer_moments_or_none(tmp_path, monkeypatch, part):
    simulate(tmp_path, num_ranks=5, slowness=SPEEDS[5], settings={"gossip.topology": "ring"}, end_s=20.0)
    run = open_run(tmp_path)
    job, distance = parse_job(run.job_toml, "test"), run.consensus_distance()
    whole = bound(run, job, distance)
    assert isinstance(whole, Bound)
    num_updates = sum(rank.updates.num_rows for rank in run.ranks)
    monkeypatch.setattr(ball, "_MOST_VISITED", int(part * num_updates * len(whole.moments) / 2))
    found = bound(run, job, distance)
    if part < 0.01:
        assert isinstance(found, str)
        assert "messages mix so slowly" in found
        return
    assert isinstance(found, Bound)
    assert 3 < len(found.moments) < len(whole.moments)
    assert set(found.moments) < set(whole.moments)
    assert found.moments[-1] == whole.moments[-1]
    assert (np.diff(found.moments) > 0).all()
    assert found.moments[0] < 0.3 * len(distance.at)
    np.testing.assert_allclose(found.sharp, whole.sharp[np.searchsorted(whole.moments, found.moments)])


def test_all_peers_at_each_update(tmp_path):
    settings = {"gossip.peers": "all"}
    simulated = simulate(tmp_path / "even", num_ranks=3, slowness=[1, 1, 1], settings=settings, jitter=0.0)
    run = open_run(tmp_path / "even")
    exchange = replay(run, parse_job(run.job_toml, "test"))
    assert_parameters(exchange, simulated)
    assert max(map(len, exchange.messages)) == 2
    simulate(tmp_path / "uneven", num_ranks=3, slowness=SPEEDS[3], settings=settings)
    run = open_run(tmp_path / "uneven")
    found = bound(run, parse_job(run.job_toml, "test"), run.consensus_distance())
    assert isinstance(found, str)
    assert "some of its peers only" in found


def test_after_a_restart_the_bound_waits_until_the_start_is_forgotten(tmp_path):
    simulate(tmp_path, num_ranks=2, slowness=[1, 1.3], restart_at=60)
    run = open_run(tmp_path)
    distance = run.consensus_distance()
    found = bound(run, parse_job(run.job_toml, "test"), distance)
    assert isinstance(found, Bound)
    first = distance.updates[found.moments[0]]
    assert (first > 70).all()
    assert (first < 130).all()
    stacked = np.linalg.norm(distance.to_mean[found.moments], axis=1)
    assert (stacked <= found.sharp * (1 + 1e-5)).all()


@pytest.mark.parametrize(
    ("settings", "slowness", "restart_at"),
    [
        ({}, [1, 1.3, 4], 6),
        ({"gossip.topology": "complete"}, [1, 1.3, 4], 6),
        ({"gossip.method": "gala"}, [1, 1.3, 4], 6),
        ({}, [1, 1.1, 1.2, 1.3, 2], 5),
        ({}, [1, 1.1, 1.2, 1.3, 2], 8),
    ],
)
def test_messages_that_a_stopped_job_drained_are_not_those_of_the_first_update(
    tmp_path, settings, slowness, restart_at
):
    run_settings = {"num_ranks": len(slowness), "slowness": slowness, "settings": settings}
    simulate(tmp_path, **run_settings, restart_at=restart_at, is_drained=True, end_s=6.0)
    run = open_run(tmp_path)
    exchange = replay(run, parse_job(run.job_toml, "test"))
    assert len(exchange.rank) == sum(rank.updates.num_rows - rank.restarts["update"][-1] for rank in run.ranks)
    num_averaged = sum(map(len, exchange.messages))
    num_received = sum(rank.updates["received"][-1] - rank.updates["received"][0] for rank in run.ranks)
    assert 0.3 * num_received < num_averaged < num_received


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"gossip.method": "none"}, "gossip.method is none"),
        ({"gossip.method": "allreduce"}, "gossip.method is allreduce"),
        ({"record.every_updates": 2}, "record.every_updates is not 1"),
    ],
)
def test_no_bound_has_a_reason(tmp_path, settings, reason):
    run = open_run(make_run(tmp_path, settings=settings, num_updates=10))
    found = bound(run, parse_job(run.job_toml, "test"), run.consensus_distance())
    assert isinstance(found, str)
    assert reason in found


def test_a_run_that_is_too_long_to_be_told_again_has_no_bound_and_says_why(tmp_path, monkeypatch):
    simulate(tmp_path, num_ranks=2, slowness=[1, 1.3], end_s=3.0)
    run = open_run(tmp_path)
    job = parse_job(run.job_toml, "test")
    num_updates = sum(rank.updates.num_rows for rank in run.ranks)
    monkeypatch.setattr(telling, "_MOST_UPDATES", num_updates)
    assert len(replay(run, job).rank) > 0
    monkeypatch.setattr(telling, "_MOST_UPDATES", num_updates - 1)
    with pytest.raises(UntoldError, match=f"its ranks made {num_updates} updates, and {num_updates - 1} at most"):
        replay(run, job)
