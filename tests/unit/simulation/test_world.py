"""What simulated jobs come to, and the table of it."""

import json
from dataclasses import replace

import numpy as np
import pytest
from made_runs import make_run
from simulated_exchange import simulate as simulate_run

from galampi.cli import run
from galampi.errors import ResultsError, UserError
from galampi.results import open_run
from galampi.simulation.machine import Exchange, Machine
from galampi.simulation.real import compare, recorded_of
from galampi.simulation.world import World, measure, measure_allreduce

EQUAL = Machine(rank_spread=0.0, update_spread=0.1)


def simulated(machine=EQUAL, num_updates=300, **exchange):
    return measure(World(Exchange(**{"num_ranks": 8, "message_bytes": 0.0, **exchange}), machine), num_updates)


def test_push_sum_moves_as_it_should_and_loses_no_time() -> None:
    came_to = simulated()
    assert came_to.efficiency == pytest.approx(1, abs=0.01)
    assert came_to.effective_step == pytest.approx(1, abs=0.01)
    assert came_to.received == pytest.approx(1, abs=0.05)
    assert 0.4 < came_to.age_updates < 0.7


def test_a_straggler_slows_only_who_waits_for_it() -> None:
    slow = Machine(rank_spread=0.0, update_spread=0.1, num_stragglers=1, slowdown=4)
    # Seven ranks at full speed and one at a quarter; or eight at a quarter.
    assert simulated(slow).updates_per_s == pytest.approx(7.25 / slow.update_s, rel=0.02)
    together = measure_allreduce(Exchange(num_ranks=8, message_bytes=0.0), slow, 300, seed=0)
    assert together.updates_per_s == pytest.approx(2 / slow.update_s, rel=0.02)


def test_ranks_of_one_node_have_no_latency_between_them_and_a_death_ends_an_allreduce() -> None:
    machine = replace(EQUAL, update_spread=0.0, latency_s=0.1, ranks_per_node=8, memory_bytes_per_s=1e15)
    exchange = Exchange(num_ranks=8, message_bytes=1.0)
    alone = measure_allreduce(exchange, machine, 100, seed=0)
    assert alone.efficiency == pytest.approx(1)
    # Two nodes: there and back.
    apart = measure_allreduce(exchange, replace(machine, ranks_per_node=4), 100, seed=0)
    assert apart.efficiency == pytest.approx(machine.update_s / (machine.update_s + 0.2), rel=1e-3)
    dies = measure_allreduce(exchange, replace(machine, num_deaths=1), 100, seed=0)
    assert dies.updates_per_s == pytest.approx(alone.updates_per_s / 2)


def test_copies_take_time() -> None:
    # A message put and one averaged, at a tenth of an update each.
    slow = Machine(rank_spread=0.0, memory_bytes_per_s=1e6)
    assert simulated(slow, message_bytes=0.1e6 * slow.update_s).efficiency == pytest.approx(1 / 1.2, rel=0.02)


def test_messages_wait_for_a_narrow_link() -> None:
    # Each rank on a node of its own, whose link takes three updates for a message.
    bytes_a_put = 1e6 * 3 * EQUAL.update_s
    narrow = Machine(rank_spread=0.0, ranks_per_node=1, node_bytes_per_s=1e6, memory_bytes_per_s=1e15)
    came_to = simulated(narrow, message_bytes=bytes_a_put)
    assert came_to.received == pytest.approx(1 / 3, abs=0.03)
    assert came_to.efficiency == pytest.approx(1, abs=0.01)
    assert came_to.age_updates > 3


def test_the_dead_count_no_more_and_the_late_begin_later() -> None:
    dying = simulated(Machine(num_deaths=3, update_spread=0.1))
    assert 5 / 8 < dying.efficiency < 0.95
    late = World(Exchange(num_ranks=8), Machine(num_late=4))
    late.begin(100.0)
    late.events.run(0.1)
    assert sum(rank.num_updates == 0 for rank in late.ranks) == 4


def test_a_table_and_its_file(tmp_path, capsys) -> None:
    out = tmp_path / "table.json"
    assert run(["simulate", "--ranks", "1", "4", "--updates", "30", "--out", str(out)]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split()[:3] == ["ranks", "method", "updates/s"]
    assert [row.split()[:2] for row in rows] == [[n, m] for n in "14" for m in ("push-sum", "gala", "allreduce")]
    record = json.loads(out.read_text())
    assert record["machine"]["ranks_per_node"] == 32
    assert [job["exchange"]["num_ranks"] for job in record["jobs"]] == [1, 1, 1, 4, 4, 4]
    assert record["jobs"][0]["measured"]["age_updates"] is None


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--updates", "3"], "--updates is 3; must be at least 20"),
        (["--peers", "all", "--ranks", "300", "--topology", "complete"], "weight_floor is 0.0625; must be at most"),
        (["--deaths", "16"], "--deaths is 16; must leave one of 16 ranks"),
        (["--gbit", "0"], "is '0'; must be above 0"),
        (["--latency-us", "-1"], "expected one argument|must be a number, 0 or more"),
    ],
)
def test_what_makes_no_sense_is_refused(words, line) -> None:
    with pytest.raises(UserError, match=line):
        run(["simulate", *words])


def test_a_run_and_its_simulation(tmp_path) -> None:
    """A run made by ranks in memory, of known speeds, is what the simulation of it comes to."""
    simulate_run(tmp_path / "run", num_ranks=4, slowness=[1, 1, 1.5, 1], end_s=40.0, jitter=0.3)
    recorded = recorded_of(open_run(tmp_path / "run"))
    assert recorded.exchange.num_ranks == 4
    np.testing.assert_allclose(recorded.update_s, [0.1, 0.1, 0.15, 0.1], rtol=0.03)
    assert recorded.machine.update_spread == pytest.approx(0.3 / np.sqrt(3), rel=0.1)
    rows = {line[:28].strip(): line.split()[-3:] for line in compare(tmp_path / "run", seed=1)}
    for name in ("updates a second", "effective step", "message age (updates)", "averaged an update"):
        real, simulated = map(float, rows[name][:2])
        assert simulated == pytest.approx(real, rel=0.1), name


def test_a_run_without_an_exchange_is_like_nothing(tmp_path) -> None:
    make_run(tmp_path / "run", settings={"gossip.method": "none"})
    with pytest.raises(ResultsError, match="send each other no messages"):
        recorded_of(open_run(tmp_path / "run"))
