"""A simulated job: its ranks, what befalls them, and what is measured of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray

from galampi.errors import UserError
from galampi.gossip import Topology, topology_of
from galampi.simulation.events import Events
from galampi.simulation.machine import Exchange, Machine
from galampi.simulation.mailbox import Network
from galampi.simulation.ranks import Draws, Ending, OnUpdate, Steps, VirtualRank, gamma

Floats = NDArray[np.float64]

_NUM_PARAMETERS = 8
_NUM_SNAPSHOTS = 40
WARM_UP = 0.3
"""Part of the time before anything is measured."""


@dataclass(frozen=True)
class Measured:
    """What a simulated job came to, in the time after its warm-up.

    Attributes:
        updates_per_s: Of all ranks together.
        efficiency: That over what the ranks would make without any exchange and pauses.
        effective_step: How far the ensemble moved over what its optimizer steps asked for.
        age_updates: Mean age of the messages averaged, in mean updates; NaN if there were none.
        received: Messages averaged an update.
        skipped: Pushes not made, an update.
        weight_spread: Standard deviation of the ranks' weights.
        weight_min: Least weight of any rank.
        weight_max: Greatest.
        distance: Root of the mean square distance of a rank to the mean of all, in steps of an optimizer.
    """

    updates_per_s: float
    efficiency: float
    effective_step: float
    age_updates: float
    received: float
    skipped: float
    weight_spread: float
    weight_min: float
    weight_max: float
    distance: float


@dataclass
class World:
    """A job of simulated ranks.

    Attributes:
        exchange: How they exchange.
        machine: What they run on.
        seed: Of all that is drawn.
        ending: What ends the job.
        network: What carries the messages.
        topology: Who sends to whom; None for that of `exchange`.
        update_s: Mean time of each rank's updates, [n]; None for what the machine says.
        num_parameters: Length of the vector that is averaged.
        on_update: Called after every update of every rank.
        events: Virtual time.
        z: Parameters of all ranks, [n, P].
        ranks: The ranks.
    """

    exchange: Exchange
    machine: Machine
    seed: int = 0
    ending: Ending = field(default_factory=Ending)
    network: Network | None = None
    topology: Topology | None = None
    update_s: Floats | None = None
    num_parameters: int = _NUM_PARAMETERS
    on_update: OnUpdate | None = None
    events: Events = field(init=False)
    z: Floats = field(init=False)
    ranks: list[VirtualRank] = field(init=False)

    def __post_init__(self) -> None:
        exchange, machine = self.exchange, self.machine
        num_ranks = exchange.num_ranks
        self.random = np.random.default_rng([self.seed, num_ranks])
        self.events = self.network.events if self.network is not None else Events()
        if self.network is None:
            self.network = Network(
                self.events,
                num_ranks,
                self.random.spawn(1)[0],
                ranks_per_node=machine.ranks_per_node,
                latency_s=machine.latency_s,
                latency_spread=machine.latency_spread,
                node_bytes_per_s=machine.node_bytes_per_s,
                message_bytes=exchange.message_bytes,
            )
        if self.update_s is None:
            self.update_s = rank_means_s(machine, num_ranks, self.random)
        topology = self.topology or topology_of(exchange.method, exchange.topology, num_ranks)
        self.z = np.zeros((num_ranks, self.num_parameters))
        factors = gamma(self.random.spawn(1)[0], machine.update_spread)
        step = Steps(self.random.spawn(1)[0], self.num_parameters)
        self.ranks = [
            VirtualRank(
                rank,
                self.z[rank],
                self.network,
                topology,
                exchange,
                machine,
                ending=self.ending,
                next_update_s=partial(_scaled, factors, float(self.update_s[rank])),
                step=step,
                on_partial=self._end_without_some,
                on_update=self.on_update,
            )
            for rank in range(num_ranks)
        ]

    def begin(self, total_s: float) -> None:
        """Begin on all ranks, and arrange for what befalls them until the end."""
        machine, random, num_ranks = self.machine, self.random, self.exchange.num_ranks
        late = random.choice(num_ranks, min(machine.num_late, num_ranks), replace=False)
        starts_s = np.zeros(num_ranks)
        starts_s[late] = random.uniform(0, total_s / 10, len(late))
        for rank in self.ranks:
            rank.begin(float(starts_s[rank.rank]))
        if machine.pauses:
            num_pauses = random.poisson(machine.pauses * num_ranks * total_s / (1000 * machine.update_s))
            moments_s = random.uniform(0, total_s, num_pauses)
            for rank, moment_s in zip(random.integers(num_ranks, size=num_pauses), moments_s, strict=True):
                self.events.at(float(moment_s), self.pause, int(rank), float(random.exponential(machine.pause_s)))
        for rank in random.choice(num_ranks, min(machine.num_deaths, num_ranks), replace=False):
            self.events.at(float(random.uniform(0, total_s)), self.kill, int(rank))

    def pause(self, rank: int, length_s: float) -> None:
        """Stop a rank for a time."""
        assert self.network is not None
        resumes_s = self.events.now_s + length_s
        self.network.resumes_s[rank] = max(self.network.resumes_s[rank], resumes_s)

    def kill(self, rank: int) -> None:
        """Stop a rank for ever, unless it has saved: from then on all that is left is to end the processes."""
        assert self.network is not None
        if self.ranks[rank].outcome is None and math.isinf(self.ranks[rank].saved_s):
            self.network.resumes_s[rank] = np.inf
            self.ranks[rank].end("died")

    def weights(self) -> Floats:
        """Return the weight that each rank holds, [n]."""
        return np.array([rank.gossip.mixing.weight for rank in self.ranks])

    def total_weight(self) -> float:
        """Return the weight in hands and in flight: what nobody will read is part of it, for it was not given back."""
        assert self.network is not None
        return float(self.weights().sum()) + sum(each.message.weight for each in self.network.in_flight.values())

    def total_mass(self) -> Floats:
        """Return the sum of w z over ranks and messages, [P]."""
        assert self.network is not None
        mass = self.weights() @ self.z
        for letter in self.network.in_flight.values():
            mass = mass + letter.message.weight * letter.read
        return np.asarray(mass)

    def moved(self) -> float:
        """Return how far the mean of all has moved, were every optimizer step a step of 1 along a line."""
        assert self.network is not None
        moved = sum(rank.gossip.mixing.weight * rank.gossip.mixing.moved for rank in self.ranks)
        if self.exchange.method == "push-sum":
            moved += sum(each.message.weight * each.message.moved for each in self.network.in_flight.values())
        return moved

    def _end_without_some(self) -> None:
        """End the job on every rank, as one does that waits no longer for others."""
        for rank in self.ranks:
            if rank.outcome != "died":
                rank.end("partial")


def rank_means_s(machine: Machine, num_ranks: int, random: np.random.Generator) -> Floats:
    """Draw the mean update time of each rank, [n] s."""
    means_s = machine.update_s * np.ones(num_ranks)
    if machine.rank_spread:
        shape = machine.rank_spread**-2
        means_s *= random.standard_gamma(shape, num_ranks) / shape
    slow = np.linspace(0, num_ranks, min(machine.num_stragglers, num_ranks), endpoint=False).astype(int)
    means_s[slow] *= machine.slowdown
    return np.asarray(means_s)


def _scaled(factors: Draws, scale: float) -> float:
    return scale * factors()


def measure(world: World, num_updates: int) -> Measured:
    """Simulate a job for so many mean updates, and measure it after a warm-up.

    Args:
        world: The job, which has not begun.
        num_updates: Mean updates of a rank without exchange.
    """
    assert world.update_s is not None
    machine = world.machine
    total_s = num_updates * machine.update_s
    world.begin(total_s)
    world.events.run(WARM_UP * total_s)
    before = _Counts.of(world)
    for rank in world.ranks:
        rank.ages_s = [0.0, 0.0]
    squares, spreads, lows, highs = [], [], [], []
    for moment_s in np.linspace(WARM_UP * total_s, total_s, _NUM_SNAPSHOTS + 1)[1:]:
        world.events.run(float(moment_s))
        living = [rank.rank for rank in world.ranks if rank.outcome is None]
        differences = world.z[living] - world.z[living].mean(axis=0)
        squares.append(float((differences**2).sum(axis=1).mean()))
        weights = world.weights()[living]
        spreads.append(float(weights.std()))
        lows.append(float(weights.min()))
        highs.append(float(weights.max()))
    after = _Counts.of(world)
    span_s = (1 - WARM_UP) * total_s
    made = after.updates - before.updates
    if not made:
        raise UserError(f"no rank makes an update in the {total_s:.3g} s that are simulated; give more --updates")
    ages = np.sum([rank.ages_s for rank in world.ranks], axis=0)
    return Measured(
        updates_per_s=made / span_s,
        efficiency=made / span_s / float((1 / world.update_s).sum()),
        effective_step=(after.moved - before.moved) / made,
        age_updates=float(ages[0] / ages[1] / machine.update_s) if ages[1] else float("nan"),
        received=(after.received - before.received) / made,
        skipped=(after.skipped - before.skipped) / made,
        weight_spread=float(np.mean(spreads)),
        weight_min=min(lows),
        weight_max=max(highs),
        distance=float(np.sqrt(np.mean(squares))),
    )


@dataclass(frozen=True)
class _Counts:
    updates: int
    received: int
    skipped: int
    moved: float

    @staticmethod
    def of(world: World) -> _Counts:
        return _Counts(
            sum(rank.num_updates for rank in world.ranks),
            sum(int(rank.gossip.received.sum()) for rank in world.ranks),
            sum(int(rank.gossip.skipped.sum()) for rank in world.ranks),
            world.moved(),
        )


def measure_allreduce(
    exchange: Exchange, machine: Machine, num_updates: int, seed: int, update_s: Sequence[float] | None = None
) -> Measured:
    """Measure a job whose ranks average gradients at every update, each waiting for the slowest.

    An allreduce among ranks of k nodes takes 2 (k - 1) / k of a message's bytes through the network and twice log2 k
    latencies: reduce-scatter and allgather. Within a node it costs copies in memory. The first rank that dies ends the
    job: of d deaths at random moments it comes after 1 / (d + 1) of the time, in the mean.
    """
    num_ranks = exchange.num_ranks
    random = np.random.default_rng([seed, num_ranks])
    means_s = rank_means_s(machine, num_ranks, random) if update_s is None else np.asarray(update_s)
    num_nodes = -(-num_ranks // machine.ranks_per_node)
    bytes_s = 2 * exchange.message_bytes * (num_nodes - 1) / num_nodes / machine.node_bytes_per_s
    allreduce_s = 0.0
    if num_ranks > 1:
        allreduce_s = bytes_s + 2 * machine.latency_s * int(np.ceil(np.log2(num_nodes)))
        allreduce_s += 2 * exchange.message_bytes / machine.memory_bytes_per_s
    slowest_s = np.zeros(num_updates)
    shape = machine.update_spread**-2 if machine.update_spread else None
    for update in range(num_updates):
        factors = random.standard_gamma(shape, num_ranks) / shape if shape is not None else np.ones(num_ranks)
        lost_s = np.zeros(num_ranks)
        if machine.pauses:
            counts = random.poisson(machine.pauses * means_s / (1000 * machine.update_s))
            lost_s = random.gamma(np.maximum(counts, 1e-12), machine.pause_s) * (counts > 0)
        slowest_s[update] = (means_s * factors + lost_s).max()
    total_s = float(slowest_s.sum()) + num_updates * allreduce_s
    rate = num_ranks * num_updates / total_s / (1 + machine.num_deaths)
    return Measured(
        updates_per_s=rate,
        efficiency=rate / float((1 / means_s).sum()),
        effective_step=1.0,
        age_updates=float("nan"),
        received=0.0,
        skipped=0.0,
        weight_spread=0.0,
        weight_min=1.0,
        weight_max=1.0,
        distance=0.0,
    )
