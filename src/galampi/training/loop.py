"""The loop of a rank: rollout, update, record, until the budget is spent or something asks to stop."""

from __future__ import annotations

import logging
import math
import time
import zlib

from galampi.environments import Failure
from galampi.errors import LostRankError
from galampi.gossip import is_heard_of
from galampi.learning import Episode, Rollout
from galampi.results import UpdateRow, flush_period_s
from galampi.signals import StopNow, StopSignals
from galampi.training.display import Display
from galampi.training.rank import Rank

log = logging.getLogger(__name__)

_LOOK_PERIOD_S = 2.0
"""Between two looks for ranks that have fallen silent."""
_STEP_NORM_EVERY = 8
_FEW_PARAMETERS = 100_000
_CHECKSUM_EVERY = 100


def train_to_end(rank: Rank, signals: StopSignals, display: Display | None) -> None:
    """Train until the budget is spent, a signal has come, or a rank that all wait for does not answer."""
    recorder = Recorder(rank, display)
    while not rank.is_to_stop(signalled=signals.caught is not None or rank.fails_too_often):
        began_s = time.monotonic()
        collected = _collect(rank, signals)
        try:
            signalled = signals.caught is not None or rank.fails_too_often
            row = _update(rank, collected[0] if collected else None, signalled=signalled)
        except LostRankError as error:
            log.warning("%s", error)
            rank.lost_rank = True
            # The others that wait need not find out for themselves.
            rank.mailboxes.announce_stop()
            return
        if row is not None and collected is not None:
            recorder.record(row, collected[1])
        rank.took_s.append(time.monotonic() - began_s)


def _collect(rank: Rank, signals: StopSignals) -> tuple[Rollout, list[Episode]] | None:
    """Collect a rollout; None if a signal has cut it short, which loses nothing but its steps."""
    try:
        with signals:
            return rank.collector.collect()
    except StopNow:
        return None


def _update(rank: Rank, rollout: Rollout | None, *, signalled: bool) -> UpdateRow | None:
    """Make one update of the parameters, gossip included, and return what is to be recorded of it.

    Without a rollout there is nothing to learn from; only an allreduce, for which the others wait, is taken part in.
    """
    learner, gossip = rank.learner, rank.gossip
    if rollout is None and rank.allreduce is None:
        return None
    laps = _Laps()
    num_samples = 0
    learner.gradient[:] = 0
    if rollout is not None:
        num_samples = rollout.num_valid
        losses = learner.compute_gradient(rollout, rank.done)
    learn_s = laps.lap_s()
    rank.update += 1
    rank.env_steps += num_samples
    rank.mailboxes.progress[rank.comm.rank] = rank.env_steps
    if rank.allreduce is not None:
        checksum = zlib.crc32(learner.z.data) if rank.update % _CHECKSUM_EVERY == 0 else 0
        stop = signalled or rank.is_over
        rank.allreduce.average(learner.gradient, num_samples, rank.env_steps, stop=stop, checksum=checksum)
        rank.mailboxes.progress[:] = rank.allreduce.progress
    time_s = rank.job_time_s
    step_scale = gossip.before_step(learner.z, time_s)
    gossip_s = laps.lap_s()

    # After the exchange of counts, so that ranks that are to be equal have the same rate.
    rate = learner.learning_rate(rank.done)
    grad_norm = learner.apply_gradient(rate, step_scale)
    step_norm = learner.step_norm(rate, step_scale) if _keeps_step_norm(rank) else math.nan
    learn_s += laps.lap_s()
    message_age_s = gossip.after_step(learner.z, rank.update, time_s)
    gossip_s += laps.lap_s()
    learner.refresh()
    learn_s += laps.lap_s()
    if rollout is None:
        return None
    return UpdateRow(
        update=rank.update,
        env_steps=rank.env_steps,
        time_s=time_s,
        policy_loss=losses.policy_loss,
        value_loss=losses.value_loss,
        entropy=losses.entropy,
        grad_norm=grad_norm,
        step_norm=step_norm,
        learning_rate=rate,
        step_scale=step_scale,
        step_weight=gossip.mixing.step_weight,
        weight=gossip.mixing.weight,
        moved=gossip.mixing.moved,
        **rank.counts,
        message_age_s=message_age_s,
        env_s=rank.collector.env_s,
        act_s=rank.collector.act_s,
        learn_s=learn_s,
        gossip_s=gossip_s,
        record_s=0.0,
    )


def _keeps_step_norm(rank: Rank) -> bool:
    """Whether the norm of this update's step is kept: a pass over all parameters, of many made now and then.

    The first are kept all: the optimizer's mean of squares fills there, and its steps shrink from one to the next.
    """
    every = _STEP_NORM_EVERY * rank.job.record.every_updates
    return rank.learner.parameters.size <= _FEW_PARAMETERS or rank.update <= every or rank.update % every == 0


class Recorder:
    """Puts on record what the updates of a rank yield: rows, episodes, sketches, checkpoints, the display."""

    def __init__(self, rank: Rank, display: Display | None) -> None:
        """Record nothing yet."""
        self._rank = rank
        self._display = display
        self._flush_period_s = flush_period_s(rank.comm.size)
        self._flush_due_s = time.monotonic() + self._flush_period_s
        self._look_due_s = 0.0
        self._sketch_due_s = 0.0
        self._record_s = 0.0
        self._tracebacks: set[str] = set()

    def record(self, row: UpdateRow, episodes: list[Episode]) -> None:
        """Record one update, and the episodes that ended in its rollout."""
        laps, rank, writer = _Laps(), self._rank, self._rank.writer
        # Of the update before: this one's is not over yet.
        writer.write_update(row._replace(record_s=self._record_s))
        for episode in episodes:
            rank.returns.append((row.time_s, episode.episodic_return))
            writer.write_episode(
                episodic_return=episode.episodic_return,
                length=episode.length,
                env_steps=row.env_steps,
                time_s=row.time_s,
                simulator=episode.simulator,
                numbers=episode.numbers,
            )
        for failure in rank.collector.failures:
            self._record_failure(row, failure)
        if row.time_s >= self._sketch_due_s:
            self._sketch(row)
        if rank.energy is not None and rank.energy.due:
            writer.write_energy(row.time_s, rank.placement.hostname, rank.energy.counted_j())
        if time.monotonic() >= self._flush_due_s:
            writer.flush()
            self._flush_due_s = time.monotonic() + self._flush_period_s
        if time.monotonic() >= self._look_due_s:
            if is_heard_of(rank.job.gossip.method):
                rank.silence.look(rank.mailboxes.progress, rank.gossip, rank.silent_after_s)
            self._look_due_s = time.monotonic() + _LOOK_PERIOD_S
        rank.save_if_due()
        if self._display is not None and self._display.due:
            self._display.update(round(rank.done * rank.job.total_env_steps), rank.mean_return())
        self._record_s = laps.lap_s()

    def _record_failure(self, row: UpdateRow, failure: Failure) -> None:
        rank = self._rank
        rank.num_failures += 1
        rank.last_failure = failure.error
        is_new = failure.traceback not in self._tracebacks
        self._tracebacks.add(failure.traceback)
        rank.writer.write_failure(
            update=row.update,
            time_s=row.time_s,
            simulator=failure.simulator,
            simulator_episode=failure.episode,
            error=failure.error,
            traceback=failure.traceback if is_new else "",
        )
        if is_new:
            where = f"the traceback is in /failures of {rank.writer.path.name}"
            log.warning("%s; it starts anew, and so it does whenever this comes; %s", failure.error, where)

    def _sketch(self, row: UpdateRow) -> None:
        """Sketch at the same times on every rank, whatever its speed, for distances are of one moment."""
        rank = self._rank
        every_s = rank.job.record.sketch_every_s
        self._sketch_due_s = (row.time_s // every_s + 1) * every_s
        rank.writer.write_sketch(row.update, row.time_s, rank.sketch(rank.learner.parameters))
        edges = rank.gossip.sent, rank.gossip.received, rank.gossip.skipped
        rank.writer.write_edges(row.update, row.time_s, rank.mailboxes.topology.hops, *edges)


class _Laps:
    """A stopwatch for the phases of an update."""

    def __init__(self) -> None:
        self._from_s = time.monotonic()

    def lap_s(self) -> float:
        """Return the seconds since the last call."""
        before_s, self._from_s = self._from_s, time.monotonic()
        return self._from_s - before_s
