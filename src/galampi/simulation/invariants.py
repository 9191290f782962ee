"""Jobs drawn at random, and what must hold of each, whatever befalls its ranks.

Weights in hands and in flight sum to the number of ranks, what the dead hold and what nobody will read among them; the
mass w z changes by optimizer steps alone; no message is torn; nobody waits for another while it trains; every rank that
lives ends, and ends whole unless another did not come.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from galampi.errors import LostRankError, UserError
from galampi.gossip import SIGNALLED_PATIENCE_S, PushSum, Stage
from galampi.gossip.mixing import Floats as AnyFloats
from galampi.simulation.events import Events
from galampi.simulation.machine import Exchange, Machine, Method
from galampi.simulation.mailbox import Network
from galampi.simulation.ranks import Ending, VirtualRank
from galampi.simulation.world import World

Floats = NDArray[np.float64]

_EVENTS_BETWEEN_SUMS = 100
_ROUNDING = 1e-10


class BrokenInvariantError(Exception):
    """What must hold of every job does not hold of one."""


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A job, and what befalls it.

    Attributes:
        seed: It was drawn from.
        exchange: How ranks exchange.
        machine: What they run on.
        ending: What ends the job.
        update_s: Mean update time of each rank, [n].
        starts_s: When each begins.
        pauses: Moments, ranks and lengths.
        deaths: Moments and ranks.
        signals: Moments and ranks.
        num_pieces: Pieces of a payload on its way.
        has_threads: Whether puts complete while ranks compute.
    """

    seed: int
    exchange: Exchange
    machine: Machine
    ending: Ending
    update_s: tuple[float, ...]
    starts_s: tuple[float, ...]
    pauses: tuple[tuple[float, int, float], ...]
    deaths: tuple[tuple[float, int], ...]
    signals: tuple[tuple[float, int], ...]
    num_pieces: int
    has_threads: bool

    def __str__(self) -> str:
        """Say it in lines."""
        exchange, machine = self.exchange, self.machine
        return "\n".join(
            [
                f"seed {self.seed}: {exchange.num_ranks} ranks, {exchange.method} over the {exchange.topology} graph, "
                f"peers {'all' if exchange.all_peers else 'rotate'}, weight floor {exchange.weight_floor:.3g}, "
                f"messages {exchange.form}; "
                f"{machine.ranks_per_node} ranks a node, latency {machine.latency_s:.2g} s, a put takes "
                f"{exchange.message_bytes / machine.node_bytes_per_s:.2g} s in {self.num_pieces} pieces, "
                f"{'with' if self.has_threads else 'without'} threads",
                f"updates take {', '.join(f'{each:.3g}' for each in self.update_s)} s; the budget is "
                f"{self.ending.budget}; silent after {self.ending.silent_after_s:.3g} s",
                *(f"{at_s:.3f} s: rank {rank} begins" for rank, at_s in enumerate(self.starts_s) if at_s),
                *(f"{at_s:.3f} s: rank {rank} stops for {length_s:.3g} s" for at_s, rank, length_s in self.pauses),
                *(f"{at_s:.3f} s: rank {rank} dies" for at_s, rank in self.deaths),
                *(f"{at_s:.3f} s: rank {rank} gets a signal" for at_s, rank in self.signals),
            ]
        )


def draw(seed: int) -> Scenario:
    """Draw a job of up to 24 ranks and some hundred updates."""
    random = np.random.default_rng(seed)
    num_ranks = int(random.integers(1, 25))
    methods: list[Method] = ["push-sum", "push-sum", "push-sum", "push-sum", "gala", "none"]
    method = methods[random.integers(len(methods))]
    topology = ("exponential", "ring", "complete")[random.integers(3)]
    all_peers = bool(random.random() < 0.3)
    num_peers = 1
    if all_peers:
        num_peers = {"exponential": (num_ranks - 1).bit_length(), "ring": 1, "complete": num_ranks - 1}[topology]
    exchange = Exchange(
        num_ranks=num_ranks,
        method=method,
        topology=topology,
        all_peers=all_peers,
        weight_floor=float(random.choice([0.0, 0.5, 1.0]) / (num_peers + 1) / random.integers(1, 9)),
        form="full" if method != "push-sum" else ("full", "bfloat16", "int8")[seed % 3],
        message_bytes=1.0,
    )
    update_s = 0.05 * random.lognormal(sigma=random.choice([0.0, 0.3, 1.0]), size=num_ranks)
    num_updates = int(random.integers(5, 400 // num_ranks + 10))
    total_s = float(num_updates * update_s.mean())
    machine = Machine(
        update_spread=float(random.choice([0.0, 0.1, 0.7])),
        ranks_per_node=int(random.choice([1, 2, 4, 32])),
        latency_s=float(10 ** random.uniform(-6, 0)) * 0.05,
        latency_spread=float(random.choice([0.0, 0.5, 2.0])),
        # From no time to several updates.
        node_bytes_per_s=float(10 ** random.uniform(0, 5)) * 4,
        memory_bytes_per_s=1e4,
    )

    def moments(most: int, until: float = 1.2) -> list[tuple[float, int]]:
        count = int(random.integers(0, most + 1)) if random.random() < 0.5 else 0
        return [(float(random.uniform(0, until * total_s)), int(random.integers(num_ranks))) for _ in range(count)]

    # One rank at least is left to end the job.
    deaths = tuple(each for each in moments(2) if each[1]) if random.random() < 0.5 else ()
    return Scenario(
        seed=seed,
        exchange=exchange,
        machine=machine,
        ending=Ending(
            budget=num_updates * num_ranks,
            silent_after_s=float(random.choice([1.0, 10.0, 60.0])),
            save_s=float(random.uniform(0, 1)),
        ),
        update_s=tuple(update_s.tolist()),
        starts_s=tuple(np.where(random.random(num_ranks) < 0.1, random.uniform(0, total_s / 3, num_ranks), 0).tolist()),
        pauses=tuple((*each, float(random.exponential(random.choice([0.1, 3.0, 30.0])))) for each in moments(4)),
        deaths=deaths,
        signals=tuple(moments(3)),
        num_pieces=int(random.choice([1, 2, 4])),
        has_threads=bool(random.random() < 0.7),
    )


def check(scenario: Scenario) -> World:
    """Simulate a job, and return it once it has ended as it must.

    Raises:
        BrokenInvariantError: It has not.
        UserError: Asserts are off.
    """
    if not __debug__:
        raise UserError("jobs are checked by asserts, which python -O (PYTHONOPTIMIZE) leaves out")
    checked = _Checked(scenario)
    try:
        checked.run()
    except (LostRankError, AssertionError, KeyError) as error:
        raise BrokenInvariantError(f"at {checked.world.events.now_s:.6f} s: {error or type(error).__name__}") from error
    return checked.world


class _Checked:
    """A job that is looked at while it is simulated."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        machine, num_ranks = scenario.machine, scenario.exchange.num_ranks
        self.network = Network(
            Events(),
            num_ranks,
            np.random.default_rng([scenario.seed, 1]),
            ranks_per_node=machine.ranks_per_node,
            latency_s=machine.latency_s,
            latency_spread=machine.latency_spread,
            node_bytes_per_s=machine.node_bytes_per_s,
            message_bytes=scenario.exchange.message_bytes,
            num_pieces=scenario.num_pieces,
            has_threads=scenario.has_threads,
        )
        self.world = World(
            scenario.exchange,
            machine,
            seed=scenario.seed,
            ending=scenario.ending,
            network=self.network,
            update_s=np.array(scenario.update_s),
            on_update=self._check_update,
        )
        self.world.z[:] = np.random.default_rng([scenario.seed, 2]).normal(size=self.world.z.shape)
        self.mass = self.world.total_mass()
        self.known = [rank.mailboxes.progress.copy() for rank in self.world.ranks]
        self.updated_s = [0.0] * num_ranks
        self.longest_update_s = 0.0

    def run(self) -> None:
        """Simulate to the end, and look at the sums on the way.

        Raises:
            AssertionError: What must hold does not.
        """
        scenario, world, events = self.scenario, self.world, self.world.events
        for rank, start_s in zip(world.ranks, scenario.starts_s, strict=True):
            rank.begin(start_s)
        for at_s, number, length_s in scenario.pauses:
            events.at(at_s, world.pause, number, length_s)
        for at_s, number in scenario.deaths:
            events.at(at_s, world.kill, number)
        for at_s, number in scenario.signals:
            events.at(at_s, world.ranks[number].signal)
        while events.run(self._deadline_s(), most=_EVENTS_BETWEEN_SUMS):
            self._check_sums()
        self._check_ends()

    def _deadline_s(self) -> float:
        """Return a moment by which every rank has ended, whatever has befallen it."""
        scenario, budget = self.scenario, self.scenario.ending.budget
        assert budget is not None
        slowest_s = max(scenario.update_s) * (1 + scenario.machine.update_spread)
        copy_s = scenario.exchange.message_bytes / scenario.machine.memory_bytes_per_s
        slowest_s += 2 * scenario.exchange.num_ranks * copy_s
        # As if one rank did it all by itself, three times over.
        training_s = max(scenario.starts_s) + 3 * (budget + 10) * slowest_s
        stopped_s = sum(length_s for *_, length_s in scenario.pauses)
        silent_after_s = max(scenario.ending.silent_after_s, SIGNALLED_PATIENCE_S, 2 * (slowest_s + stopped_s))
        ending_s = 8 * silent_after_s + 20 * scenario.ending.save_s
        return training_s + stopped_s + ending_s

    def _check_update(self, rank: VirtualRank, change: AnyFloats) -> None:
        """Check what must hold of an update that a rank has made by a step `change`."""
        number, mixing, mailboxes = rank.rank, rank.gossip.mixing, rank.mailboxes
        self.mass += mixing.step_weight * change
        self.longest_update_s = max(self.longest_update_s, self.world.events.now_s - self.updated_s[number])
        self.updated_s[number] = self.world.events.now_s
        if isinstance(mixing, PushSum):
            assert mixing.weight >= min(1, mixing.weight_floor) - _ROUNDING, f"rank {number} holds {mixing.weight}"
        truth = np.array([each.num_updates for each in self.world.ranks])
        assert (mailboxes.progress >= self.known[number]).all(), f"what rank {number} knows of progress has fallen"
        assert (mailboxes.progress <= truth).all(), f"rank {number} knows of more progress than there is"
        self.known[number] = mailboxes.progress.copy()

    def _check_sums(self) -> None:
        """Check what must hold at any moment."""
        if self.scenario.exchange.method == "gala":
            return
        world, num_ranks = self.world, self.scenario.exchange.num_ranks
        weight = world.total_weight()
        assert abs(weight - num_ranks) < num_ranks * _ROUNDING, f"weights sum to {weight} of {num_ranks}"
        mass = world.total_mass()
        most = num_ranks * (1 + float(np.abs(world.z).max())) * _ROUNDING
        assert np.abs(mass - self.mass).max() < most, f"the mass is {mass}, must be {self.mass}"

    def _check_ends(self) -> None:
        """Check what must hold of a job that has ended."""
        scenario, ranks = self.scenario, self.world.ranks
        open_ends = [rank.rank for rank in ranks if rank.outcome is None]
        if scenario.exchange.method == "none":
            # Who exchanges nothing does not hear that another has died, and waits until a signal comes; a rank that is
            # only slow is left in peace.
            ends = {rank.outcome for rank in ranks}
            if not any(rank.signalled_s is not None and rank.outcome != "died" for rank in ranks):
                if "died" in ends:
                    return
                assert ends == {"whole"}, f"ranks that exchange nothing have ended {ends}"
        assert not open_ends, f"ranks {open_ends} have not ended by {self.world.events.now_s:.3f} s"
        outcomes = {rank.outcome for rank in ranks} - {"died"}
        assert len(outcomes) <= 1, f"some ranks have ended whole and some have not: {[r.outcome for r in ranks]}"
        left_s = [rank.left_s for rank in ranks if rank.left_s is not None]
        if not scenario.deaths and not scenario.pauses:
            # A stop goes round by log2 n relays, each of which looks at the end of its update.
            relays = 1 + (scenario.exchange.num_ranks - 1).bit_length()
            within_s = relays * (self.longest_update_s + self.network.slowest_write_s)
            assert scenario.exchange.method == "none" or max(left_s) - min(left_s) <= within_s, (
                f"ranks have left {max(left_s) - min(left_s):.3f} s apart, must within {within_s:.3f}"
            )
        if outcomes == {"partial"}:
            waited_s = max(rank.ended_s - rank.left_s for rank in ranks if rank.left_s is not None)
            assert waited_s > SIGNALLED_PATIENCE_S, f"given up after {waited_s:.3f} s"
            latest_s = max(rank.saved_s for rank in ranks) + self.network.slowest_write_s
            assert latest_s >= max(rank.ended_s for rank in ranks), "given up though all have saved"
            return
        assert all(rank.mailboxes.stages.min() >= Stage.SAVED for rank in ranks if rank.outcome == "whole"), (
            "a job calls itself whole before all have saved"
        )
        if all((rank.mailboxes.stages == Stage.SAVED).all() for rank in ranks if rank.outcome == "whole"):
            in_flight = [letter.number for letter in self.network.in_flight.values()]
            assert not in_flight, f"{len(in_flight)} messages are in flight after a whole end"
        if not any(rank.signalled_s is not None for rank in ranks):
            made, budget = sum(rank.num_updates for rank in ranks), scenario.ending.budget
            assert budget is not None and made >= budget, f"{made} of {budget} updates are made"
