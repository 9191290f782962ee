"""Who averaged which message with what share: the exchange of a run, told again from its files.

Owns the reconstruction. Nothing in a rank file names the messages that an update averaged, yet all follows: a mailbox
holds one message, so the k-th message averaged from an edge is the k-th one sent along it; which edge a rank sent along
follows from the rotation, and which edges it averaged from, where there are several, from the recorded age.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import chain, combinations, islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from galampi.errors import UntoldError
from galampi.job import Gossip, Job
from galampi.results.reader import RankFile, Run

Floats = NDArray[np.float64]
Int64s = NDArray[np.int64]

_SAME_S = 1e-7
"""Most by which a mean age may differ from the recorded one: rounding of float64."""
_SKEW_S = 1.0
"""Most by which the clocks of two ranks are taken to differ; both began at the start barrier."""
_MOST_UPDATES = 5_000_000
"""Most updates of all ranks that are told again: each takes 50 us, and 800 bytes at the most."""
_MOST_CHOICES = 10_000
"""Most choices of messages that are compared with the recorded age of one update."""


@dataclass(eq=False)
class Exchange:
    """The updates of all ranks since the last restart, in an order in which every message was sent before it came.

    An update is the averaging, then the optimizer's step G; and the result is what it sends:

        z <- keep z_before + sum over the messages of share z_sender + G,    keep + sum of shares = 1.

    Algorithm 1 averages after it has sent, so what an update of it averages belongs to the next one here, and comes
    on top of what is measured after the update. Runs of an earlier galampi took the step first:
    z <- keep (z_before + G) + ...

    Attributes:
        steps_first: Whether the step comes before the averaging.
        averages_last: Whether what was measured after an update has averaged `afterwards` too.
        is_whole: Whether it begins with the job, when all ranks had the same parameters.
        has_estimates: Whether some norms were not recorded, and are estimated; see `_step_norms`.
        rank: [E] int, whose update it is.
        at_s: [E] float, job time, s.
        step_norm: [E] float, Euclidean norm of its step G.
        before: [E] int, index of the rank's update before, -1 for the first.
        keep: [E] float in (0, 1], share of its own parameters.
        messages: [E] lists of the messages that were averaged: index of the update that sent it, and share.
        afterwards: Of Algorithm 1, index of an update -> the messages that it averaged after it had sent, as in
            `messages`; of those updates all of whose senders are known.
        by_update: Rank and number of its update (from 1, as in the files) -> index.
    """

    is_whole: bool
    has_estimates: bool
    steps_first: bool = False
    averages_last: bool = False
    rank: list[int] = field(default_factory=list)
    at_s: list[float] = field(default_factory=list)
    step_norm: list[float] = field(default_factory=list)
    before: list[int] = field(default_factory=list)
    keep: list[float] = field(default_factory=list)
    messages: list[list[tuple[int, float]]] = field(default_factory=list)
    afterwards: dict[int, list[tuple[int, float]]] = field(default_factory=dict)
    by_update: dict[tuple[int, int], int] = field(default_factory=dict)

    def index(self, rank: int, update: int) -> int | None:
        """Return the index of a rank's update; None if it is not part of the exchange."""
        return self.by_update.get((rank, update))


def replay(run: Run, job: Job) -> Exchange:
    """Reconstruct the exchange of a run since its last restart.

    Args:
        run: Whose files are read.
        job: What the run was made with.

    Returns:
        The exchange, as far as the files of all ranks go.

    Raises:
        UntoldError: The files do not tell it.
    """
    gossip = job.gossip
    num_updates = sum(rank.updates.num_rows for rank in run.ranks)
    if num_updates > _MOST_UPDATES:
        raise UntoldError(f"its ranks made {num_updates:,} updates, and {_MOST_UPDATES:,} at most are told again")
    logs = [_Log(rank, run.num_ranks, job) for rank in run.ranks]
    steps_first = any(log.steps_first for log in logs)
    exchange = Exchange(
        is_whole=not any(log.was_resumed for log in logs),
        has_estimates=any(log.has_estimates for log in logs),
        steps_first=steps_first,
        averages_last=gossip.method == "gala" and not steps_first,
    )
    averaged = [log.match(logs, gossip) for log in logs]
    sources = [[[], *each[:-1]] if each else [] for each in averaged] if exchange.averages_last else averaged
    index: list[list[int]] = [[] for _ in logs]

    def tell(rank: int, row: int) -> None:
        """Append the updates of a rank up to a row, each after those whose messages it averaged, as far as is known."""
        waiting = [(rank, row)]
        while waiting:
            rank, row = waiting[-1]
            log, each = logs[rank], len(index[rank])
            if each > row:
                waiting.pop()
                continue
            if each >= len(sources[rank]):
                return
            untold = [(sender, at) for sender, at, _ in sources[rank][each] if at >= len(index[sender])]
            if untold:
                if untold[0][0] in [one for one, _ in waiting]:
                    raise UntoldError(f"{log.name}: updates wait for each other's messages at {log.time_s[each]} s")
                waiting.append(untold[0])
                continue
            shares = [(index[sender][sent_at], share) for sender, sent_at, share in sources[rank][each]]
            exchange.rank.append(rank)
            exchange.at_s.append(float(log.time_s[each]))
            exchange.step_norm.append(float(log.step_norm[each]))
            exchange.before.append(index[rank][-1] if each else -1)
            exchange.keep.append(1 - sum(share for _, share in shares))
            exchange.messages.append(shares)
            index[rank].append(len(exchange.rank) - 1)
            exchange.by_update[rank, int(log.update[each])] = index[rank][-1]

    rows = sorted((float(time_s), log.rank, row) for log in logs for row, time_s in enumerate(log.time_s))
    for _, rank, row in rows:
        tell(rank, row)
    if exchange.averages_last:
        for rank, each in enumerate(averaged):
            for node, messages in zip(index[rank], each, strict=False):
                if all(sent_at < len(index[sender]) for sender, sent_at, _ in messages):
                    exchange.afterwards[node] = [(index[sender][sent_at], share) for sender, sent_at, share in messages]
    return exchange


class _Log:
    """What one rank recorded of its exchange since its last restart: R updates, H hops.

    Attributes:
        name: Of the file.
        rank: Whose it is.
        hops: [H] int: edge h sends to rank + h and receives from rank - h, modulo the number of ranks.
        was_resumed: Whether there was a restart.
        has_estimates: Whether some of `step_norm` were not recorded.
        steps_first: Whether an earlier galampi wrote it, which took the step before the averaging.
        step_norm: [R] float64, norm of every step.
        update: [R] int64, number of the update.
        time_s: [R] float64, job time.
        weight: [R] float64, push-sum weight after the gossip of the update.
        age_s: [R] float64, mean age of the messages averaged; NaN if there were none.
        num_received: [R] int64, messages averaged; of the first update after a restart, the most it can be.
        sent_at: [H] arrays of the rows that sent along each hop, ascending.
        weight_before_sending: [R] float64, push-sum weight between averaging and sending.
    """

    def __init__(self, file: RankFile, num_ranks: int, job: Job) -> None:
        rows = file.updates.read()
        if int(file.attributes.get("thinning", 1)) != 1:
            raise UntoldError("record.every_updates is not 1, so updates are missing from the files")
        self.name = file.path.name
        self.rank = file.rank
        self.hops = [(int(peer) - file.rank) % num_ranks for peer in file.attributes.get("out_peers", [])]
        if not self.hops:
            raise UntoldError(f"{file.path.name} does not say who it sent to")
        self.was_resumed = file.restarts.num_rows > 0
        start = 0
        if self.was_resumed:
            start = int(np.searchsorted(rows["update"], file.restarts["update"][-1], side="right"))
        self.has_estimates = not np.isfinite(rows["step_norm"][start:]).all()
        self.step_norm = _step_norms(rows, job.learner.max_grad_norm, self.name)[start:]
        self.update: Int64s = rows["update"][start:]
        self.time_s: Floats = rows["time_s"][start:]
        self.weight: Floats = rows["weight"][start:]
        self.age_s: Floats = rows["message_age_s"][start:]
        num_hops = len(self.hops)
        # The messages that were drained when the job stopped are counted in the first row after it, too.
        num_received = np.minimum(np.diff(rows["received"], prepend=0)[start:], num_hops)
        self.num_received: Int64s = np.where(np.isfinite(self.age_s), num_received, 0)
        num_sent = np.diff(rows["sent"], prepend=0)[start:]
        if job.gossip.peers == "all":
            if ((num_sent > 0) & (num_sent < num_hops)).any():
                raise UntoldError(f"{self.name}: an update sent to some of its peers only; which, is not told")
            self.sent_at = [np.flatnonzero(num_sent)] * num_hops
        else:
            turn = np.arange(len(num_sent)) % num_hops
            self.sent_at = [np.flatnonzero((num_sent > 0) & (turn == hop)) for hop in range(num_hops)]
        self.steps_first = bool(np.isnan(rows["step_weight"]).all())
        # A sender keeps as much weight as each of its messages takes.
        self.weight_before_sending = self.weight * (1 + num_sent)

    def match(self, logs: list[_Log], gossip: Gossip) -> list[list[tuple[int, int, float]]]:
        """Find the messages that each update averaged: sender, its row, and the share."""
        num_read = [0] * len(self.hops)
        senders = [(self.rank - hop) % len(logs) for hop in self.hops]
        found: list[list[tuple[int, int, float]]] = []
        for row, num_received in enumerate(self.num_received.tolist()):
            if not num_received:
                found.append([])
                continue
            waiting: dict[int, int] = {}
            is_unfinished = False
            for edge, sender in enumerate(senders):
                sent_at = logs[sender].sent_at[edge]
                if num_read[edge] == len(sent_at):
                    is_unfinished = True
                    continue
                at = int(sent_at[num_read[edge]])
                # What the sender had sent by the next update here; later messages cannot have come yet.
                if logs[sender].time_s[at] < self._next_s(row) + _SKEW_S:
                    waiting[edge] = at
            ages_s = {edge: float(self.time_s[row] - logs[senders[edge]].time_s[at]) for edge, at in waiting.items()}
            counts = range(1, num_received + 1) if self.was_resumed and row == 0 else (num_received,)
            edges = self._choose(ages_s, counts, float(self.age_s[row]))
            if edges is None:
                if is_unfinished:
                    # A sender's rows are not in its file yet.
                    return found
                raise UntoldError(f"{self.name}: no message that was sent has the age recorded at {self.time_s[row]} s")
            messages = []
            for edge in edges:
                num_read[edge] += 1
                sender = senders[edge]
                if gossip.method == "gala":
                    share = 1 / (1 + len(edges))
                else:
                    share = float(logs[sender].weight[waiting[edge]] / self.weight_before_sending[row])
                messages.append((sender, waiting[edge], share))
            found.append(messages)
        return found

    def _next_s(self, row: int) -> float:
        return float(self.time_s[row + 1]) if row + 1 < len(self.time_s) else np.inf

    def _choose(self, ages_s: dict[int, float], counts: Iterable[int], mean_s: float) -> tuple[int, ...] | None:
        """Choose the edges whose messages have a mean age, trying old messages first, for they came first.

        Args:
            ages_s: Ages of the messages that an update may have averaged, by edge.
            counts: How many it averaged: one of these.
            mean_s: The mean age recorded.

        Returns:
            The edges; None if there are none.

        Raises:
            UntoldError: There are too many choices.
        """
        oldest_first = sorted(ages_s, key=lambda edge: -ages_s[edge])
        choices = chain.from_iterable(combinations(oldest_first, count) for count in counts)
        for edges in islice(choices, _MOST_CHOICES):
            if abs(sum(ages_s[edge] for edge in edges) / len(edges) - mean_s) <= _SAME_S:
                return edges
        if next(choices, None) is not None:
            raise UntoldError(
                f"{self.name}: there are more than {_MOST_CHOICES:,} choices of messages for one update; "
                "too many ranks send to each other"
            )
        return None


def _step_norms(rows: dict[str, NDArray[Any]], max_grad_norm: float, name: str) -> Floats:
    """Return the norm of every step, also of those whose norm was not recorded.

    A step is the gradient, clipped to `max_grad_norm`, times learning rate over root mean square. The latter changes
    little between two recorded norms, so that in between norms are taken to be in proportion to learning rate times
    clipped norm of the gradient, with a factor interpolated in time.

    Args:
        rows: Columns of `/updates`, [R] each.
        max_grad_norm: Norm the gradient was clipped to.
        name: Of the file, for errors.

    Returns:
        [R] norms.

    Raises:
        UntoldError: No norm was recorded.
    """
    known = np.isfinite(rows["step_norm"])
    rate = rows["learning_rate"] * np.where(np.isnan(rows["step_scale"]), 1.0, rows["step_scale"])
    size = rate * np.minimum(rows["grad_norm"], max_grad_norm)
    known &= size > 0
    if not known.any():
        raise UntoldError(f"{name} has no step_norm: a galampi that did not record it, or too few updates")
    factor = np.interp(rows["time_s"], rows["time_s"][known], rows["step_norm"][known] / size[known])
    return np.where(np.isfinite(rows["step_norm"]), rows["step_norm"], factor * size)
