"""One simulated rank: the project's own gossip, in virtual time."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from galampi.gossip import Gossip, Patience, PushSum, Stage, Topology, UniformAverage, is_heard_of
from galampi.gossip.mixing import Floats
from galampi.gossip.patience import TYPICAL_OF, silent_after_s
from galampi.simulation.events import Events
from galampi.simulation.machine import Exchange, Machine
from galampi.simulation.mailbox import MemoryMailboxes, Network

OnUpdate = Callable[["VirtualRank", Floats], None]

_BLOCK = 1 << 14


class Draws:
    """Numbers drawn by the block, for one at a time costs more than what it is needed for."""

    def __init__(self, draw: Callable[[int], NDArray[np.float64]]) -> None:
        """Draw none yet; `draw` returns as many as it is asked for."""
        self._draw = draw
        self._values: list[float] = []

    def __call__(self) -> float:
        """Return the next."""
        if not self._values:
            self._values = self._draw(_BLOCK).tolist()
        return self._values.pop()


def gamma(random: np.random.Generator, spread: float) -> Draws:
    """Return gamma-distributed factors of mean 1, and of this standard deviation."""
    if not spread:
        return Draws(np.ones)
    shape = spread**-2
    return Draws(lambda count: random.standard_gamma(shape, count) / shape)


class Steps:
    """Optimizer steps: vectors of normal numbers whose norm is 1 in the root of the mean square."""

    def __init__(self, random: np.random.Generator, num_parameters: int) -> None:
        """Draw none yet."""
        self._random = random
        self._num_parameters = num_parameters
        self._rows: list[Floats] = []

    def __call__(self) -> Floats:
        """Return the next, [P] float64."""
        if not self._rows:
            shape = _BLOCK // 4, self._num_parameters
            self._rows = list(self._random.normal(scale=self._num_parameters**-0.5, size=shape))
        return self._rows.pop()


@dataclass(frozen=True)
class Ending:
    """What ends a job, and how.

    Attributes:
        budget: Progress of all ranks together at which the job ends; None for never.
        silent_after_s: A rank that is not heard for so long, nor for two updates, is waited for no longer.
        save_s: Time a rank takes to save.
        look_s: Time between two looks of a rank that waits.
    """

    budget: int | None = None
    silent_after_s: float = 60.0
    save_s: float = 0.1
    look_s: float = 0.05


class VirtualRank:
    """One rank: updates as the training loop makes them, and the end.

    Attributes:
        rank: Its number.
        z: Its parameters, [P] float64.
        mailboxes: Its ends of the edges.
        gossip: Its part in the exchange.
        num_updates: Updates it has made.
        signalled_s: When a signal came; None if none has.
        left_s: When it stopped training; None while it trains.
        outcome: `whole`, `partial` or `died`; None before its end.
        saved_s: When it told the others that it has saved; infinite before.
        ended_s: When it ended; NaN before.
        ages_s: Sum of the message ages of its updates that averaged any since the counts began, and their number.
    """

    def __init__(
        self,
        rank: int,
        z: Floats,
        network: Network,
        topology: Topology,
        exchange: Exchange,
        machine: Machine,
        *,
        ending: Ending,
        next_update_s: Callable[[], float],
        step: Callable[[], Floats],
        on_partial: Callable[[], None],
        on_update: OnUpdate | None = None,
    ) -> None:
        """Join the job.

        Args:
            rank: Its number.
            z: Its parameters, [P].
            network: To join.
            topology: Who sends to whom.
            exchange: How.
            machine: What the rank runs on.
            ending: What ends the job.
            next_update_s: Draws the time of an update, s.
            step: Draws an optimizer step, [P].
            on_partial: Called when this rank ends a job without some.
            on_update: Called after every update, with the step it made, [P].
        """
        self.rank = rank
        self.z = z
        self.mailboxes = MemoryMailboxes(
            network,
            topology,
            rank,
            z.size,
            z.dtype,
            form=exchange.form,
            carries_progress=ending.budget is not None,
        )
        mixing = UniformAverage() if exchange.method == "gala" else PushSum(exchange.weight_floor, _lerp)
        self.gossip = Gossip(self.mailboxes, mixing, all_peers=exchange.all_peers)
        self.num_updates = 0
        self.signalled_s: float | None = None
        self.left_s: float | None = None
        self.outcome: str | None = None
        self.ended_s = math.nan
        self.saved_s = math.inf
        self.ages_s = [0.0, 0.0]
        self._method = exchange.method
        self._network = network
        self._events: Events = network.events
        self._copy_s = exchange.message_bytes / machine.memory_bytes_per_s
        self._ending = ending
        self._own_budget = None if ending.budget is None else -(-ending.budget // exchange.num_ranks)
        self._next_update_s = next_update_s
        self._step = step
        self._on_partial = on_partial
        self._on_update = on_update
        self._took_s: deque[float] = deque(maxlen=TYPICAL_OF)
        self._began_s = math.nan
        self._patience: Patience | None = None
        self._is_exact = False

    def begin(self, moment_s: float) -> None:
        """Begin to train at a moment."""
        self._began_s = moment_s
        self._events.at(moment_s + self._next_update_s(), self.update)

    def signal(self) -> None:
        """Take a signal to stop, which cuts a rollout short."""
        if self.signalled_s is None and self.outcome is None:
            self.signalled_s = self._events.now_s
            self.signal_again()

    def signal_again(self) -> None:
        """See, once it goes on, a signal that came while it was stopped."""
        if self.outcome is not None or self._is_stopped(self.signal_again):
            return
        if self.left_s is None:
            self._leave_if_asked()
        else:
            self.mailboxes.announce_stop()

    def update(self) -> None:
        """End a rollout: average, step, send, and begin the next unless the job ends."""
        if self.left_s is not None or self.outcome is not None or self._is_stopped(self.update):
            return
        now_s, mailboxes, gossip = self._events.now_s, self.mailboxes, self.gossip
        self.num_updates += 1
        self._took_s.append(now_s - self._began_s)
        self._began_s = now_s
        if self._ending.budget is not None:
            mailboxes.progress[self.rank] = self.num_updates
        mailboxes.num_copied = 0
        change = gossip.before_step(self.z, now_s) * self._step()
        self.z += change
        age_s = gossip.after_step(self.z, self.num_updates, now_s)
        if self._on_update is not None:
            self._on_update(self, change)
        if age_s == age_s:
            self.ages_s[0] += age_s
            self.ages_s[1] += 1
        if not self._leave_if_asked():
            busy_s = mailboxes.num_copied * self._copy_s + self._next_update_s()
            self._events.at(now_s + busy_s, self.update)

    def end(self, outcome: str) -> None:
        """End, by itself or by another."""
        self.outcome, self.ended_s = outcome, self._events.now_s

    def _leave_if_asked(self) -> bool:
        is_done = False
        if self._ending.budget is not None:
            if self._method == "none":
                is_done = self.num_updates >= (self._own_budget or 0)
            else:
                is_done = bool(self.mailboxes.progress.sum() >= self._ending.budget)
        has_reason = self.signalled_s is not None or (is_done and self._method != "none")
        if not self.mailboxes.is_to_stop(has_reason=has_reason) and not is_done:
            return False
        self.left_s = self._events.now_s
        self.mailboxes.announce(Stage.SAVING)
        self._events.at(self.left_s + self._ending.save_s, self._begin_drain)
        return True

    def _begin_drain(self) -> None:
        if self.outcome is None and not self._is_stopped(self._begin_drain):
            self.mailboxes.announce(Stage.DRAINING)
            limit_s = silent_after_s(self._ending.silent_after_s, self._took_s)
            self._patience = Patience(self._events.now_s, limit_s, hears=is_heard_of(self._method))
            self._drain()

    def _drain(self) -> None:
        """Look once at what others still send."""
        if self.outcome is not None or self._is_stopped(self._drain):
            return
        assert self._patience is not None
        now_s = self._events.now_s
        self._is_exact = self.gossip.take_in(self.z)
        if self._is_exact or self._patience.is_over_for_messages(self.mailboxes.stages, now_s, self.signalled_s):
            self._events.at(now_s + self._ending.save_s, self._save)
        else:
            self._events.at(now_s + self._ending.look_s, self._drain)

    def _save(self) -> None:
        if self.outcome is not None or self._is_stopped(self._save):
            return
        self.saved_s = self._events.now_s
        self.mailboxes.announce(Stage.SAVED if self._is_exact else Stage.SAVED_ALONE)
        self._wait_for_saving()

    def _wait_for_saving(self) -> None:
        """Look once at whether the others have saved."""
        if self.outcome is not None or self._is_stopped(self._wait_for_saving):
            return
        assert self._patience is not None
        stages = self.mailboxes.stages
        if (stages >= Stage.SAVED).all():
            self.end("whole")
        elif self._patience.ends_job(self.rank, stages, self._events.now_s, self.signalled_s):
            self._on_partial()
        else:
            self._events.at(self._events.now_s + self._ending.look_s, self._wait_for_saving)

    def _is_stopped(self, call: Callable[[], None]) -> bool:
        """Whether this rank is stopped; what it was about to do it does when it goes on."""
        resumes_s = self._network.resumes_s[self.rank]
        if self._events.now_s >= resumes_s:
            return False
        if math.isfinite(resumes_s):
            self._events.at(resumes_s, call)
        return True


def _lerp(z: Floats, other: Floats, share: float) -> None:
    """Move `z` in place to z + share (other - z): in one go, for it is short."""
    z += share * (other - z)
