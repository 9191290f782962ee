"""Ranks that exchange parameters in memory, at speeds of their own, and the files they leave."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from galampi.gossip.asynchronous import Gossip
from galampi.gossip.mixing import Message, PushSum, UniformAverage
from galampi.gossip.topology import complete, exponential, ring
from galampi.job import dump_job, parse_job
from galampi.results import JobFile, RankWriter, Restart, Sketch, UpdateRow

NUM_PARAMETERS = 16
SKETCH_EVERY_S = 0.3


@dataclass
class Simulated:
    """What the ranks did: [rank][update] steps and parameters after the gossip of that update."""

    start: np.ndarray
    steps: list = field(default_factory=list)
    states: list = field(default_factory=list)


class Memory:
    """Mailboxes one message deep; a sender knows of a reading only at its next update."""

    def __init__(self, rank, topology, boxes):
        self.rank, self.topology, self.boxes = rank, topology, boxes
        self.progress = np.zeros(topology.num_ranks, np.int64)

    def require(self, z):
        pass

    def push(self, edge, z, weight, update, time_s, moved):
        key = self.topology.out_peers(self.rank)[edge], edge
        if key in self.boxes:
            return None
        self.boxes[key] = Message(z.copy(), weight, update, time_s, self.progress, moved)
        return z

    def poll(self):
        edges = range(len(self.topology.hops))
        return {edge: self.boxes[self.rank, edge] for edge in edges if (self.rank, edge) in self.boxes}

    def acknowledge(self, edge):
        del self.boxes[self.rank, edge]

    def finish(self):
        return True


def simulate(
    out: Path,
    *,
    num_ranks,
    slowness,
    settings=None,
    kind="random",
    end_s=12.0,
    num_rows_missing=None,
    norm_every=1,
    age_error_s=0.0,
    restart_at=None,
    is_drained=False,
    jitter=0.5,
) -> Simulated:
    """Simulate a run and write its files.

    Args:
        out: Folder of the run.
        num_ranks: Ranks.
        slowness: Mean duration of each rank's updates, in tenths of a second.
        settings: Of the job.
        kind: Steps of "random" directions, or of ranks that move "apart" along a line.
        end_s: Job time at the end.
        num_rows_missing: Of each rank's last rows, as in a file that is being written.
        norm_every: Updates between two recorded norms.
        age_error_s: Falsifies the recorded ages.
        restart_at: Update of each rank after which all messages are lost and weights are 1 again.
        is_drained: Before the restart the messages under way are averaged, and weights stay.
        jitter: Most by which the duration of an update differs from its mean, as a part of it.
    """
    job = parse_job("", "test", {"name": "simulated", **(settings or {})})
    rng = np.random.default_rng(5)
    topology = {"exponential": exponential, "ring": ring, "complete": complete}[job.gossip.topology](num_ranks)
    boxes: dict = {}

    def join(rank, weight=1.0):
        mixing = UniformAverage()
        if job.gossip.method != "gala":
            mixing = PushSum()
            mixing.weight = weight
        return Gossip(Memory(rank, topology, boxes), mixing, all_peers=job.gossip.peers == "all")

    gossips = [join(rank) for rank in range(num_ranks)]
    start = rng.normal(size=NUM_PARAMETERS).astype(np.float32)
    z = [start.copy() for _ in range(num_ranks)]
    simulated = Simulated(start, [[] for _ in z], [[] for _ in z])
    rows: list[list[dict]] = [[] for _ in z]
    totals = np.zeros((num_ranks, 3), np.int64)
    # When each rank's next update ends.
    clock = np.array([0.01 * rank + 0.1 * slowness[rank] for rank in range(num_ranks)])
    has_restarted = False
    while clock.min() < end_s:
        rank = int(clock.argmin())
        if restart_at is not None and not has_restarted and min(map(len, rows)) >= restart_at:
            has_restarted = True
            weights = [1.0] * num_ranks
            if is_drained:
                for each in range(num_ranks):
                    gossips[each].drain(z[each])
                weights = [each.mixing.weight for each in gossips]
            boxes.clear()
            totals += [[each.sent.sum(), each.received.sum(), each.skipped.sum()] for each in gossips]
            gossips = [join(each, weights[each]) for each in range(num_ranks)]
            restarts = [len(each) for each in rows]
        step = rng.normal(size=NUM_PARAMETERS) * rng.lognormal()
        if kind == "apart":
            step = np.ones(NUM_PARAMETERS) * (-1) ** rank * rng.lognormal()
        step = step.astype(np.float32)
        time_s = float(clock[rank])
        clock[rank] += 0.1 * slowness[rank] * rng.uniform(1 - jitter, 1 + jitter)
        gossip = gossips[rank]
        step_scale = gossip.before_step(z[rank], time_s)
        step *= np.float32(step_scale)
        z[rank] += step
        age_s = gossip.after_step(z[rank], len(rows[rank]) + 1, time_s)
        sent, received, skipped = totals[rank] + [gossip.sent.sum(), gossip.received.sum(), gossip.skipped.sum()]
        norm = float(np.linalg.norm(step))
        rows[rank].append(
            {
                "time_s": time_s,
                "step_norm": norm,
                "grad_norm": 0.001 * norm / step_scale,
                "step_scale": step_scale,
                "step_weight": gossip.mixing.step_weight,
                "moved": gossip.mixing.moved,
                "weight": gossip.mixing.weight,
                "sent": int(sent),
                "received": int(received),
                "skipped": int(skipped),
                "message_age_s": age_s + age_error_s,
            }
        )
        simulated.steps[rank].append(step)
        simulated.states[rank].append(z[rank].copy())
    JobFile.create(out, {"job_toml": dump_job(job)}, num_ranks)
    for rank in range(num_ranks):
        missing = (num_rows_missing or [0] * num_ranks)[rank]
        write_rank(
            out / f"rank-{rank:04d}.h5",
            rank,
            rows[rank][: len(rows[rank]) - missing],
            simulated.states[rank],
            out_peers=topology.out_peers(rank),
            norm_every=norm_every,
            restart_after=restarts[rank] if restart_at is not None else None,
            weights_restarted=not is_drained,
        )
    return simulated


def write_rank(path, rank, rows, states, *, out_peers, norm_every=1, restart_after=None, weights_restarted=True):
    """Write a rank's file: a row of each update, and sketches of the states."""
    sketch = Sketch(1 << 14, NUM_PARAMETERS)
    settings = {"rank": rank, "sketch": sketch, "attributes": {"out_peers": out_peers}}
    columns = ("policy_loss", "value_loss", "entropy", "env_s", "act_s", "learn_s", "gossip_s", "record_s")
    writer = RankWriter(path, **settings)
    sketch_due_s = 0.0
    for update, row in enumerate(rows, 1):
        norm = row["step_norm"] if update % norm_every == 0 else np.nan
        constant = dict.fromkeys(columns, 0.0)
        values = {**row, "step_norm": norm}
        writer.write_update(UpdateRow(update=update, env_steps=update, learning_rate=1e-3, **constant, **values))
        if row["time_s"] >= sketch_due_s:
            sketch_due_s = (row["time_s"] // SKETCH_EVERY_S + 1) * SKETCH_EVERY_S
            writer.write_sketch(update, row["time_s"], sketch(states[update - 1]))
        if update == restart_after:
            position = writer.position()
            writer.close()
            restart = Restart(update=update, time_s=row["time_s"], reason="test", weights_restarted=weights_restarted)
            writer = RankWriter(path, **settings, resume_at=position, restart=restart)
    writer.close()
