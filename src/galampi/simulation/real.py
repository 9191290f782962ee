"""A simulated job beside the run it is to be like."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from galampi.errors import ResultsError
from galampi.job import parse_job
from galampi.results import RankFile, Run, open_run
from galampi.simulation.machine import Exchange, Machine
from galampi.simulation.world import WARM_UP, Measured, World, measure

Rows = dict[str, NDArray[Any]]

_NUM_MOMENTS = 40
_FEWEST_UPDATES = 50


@dataclass(frozen=True)
class Recorded:
    """What a run recorded of its exchange.

    Attributes:
        exchange: How its ranks exchanged.
        machine: What they ran on, as far as it can be told.
        update_s: Mean update time of each rank, exchange included, [n].
        num_updates: Mean updates of a rank.
        measured: What it came to.
    """

    exchange: Exchange
    machine: Machine
    update_s: NDArray[np.float64]
    num_updates: int
    measured: Measured


def compare(path: Path, *, seed: int) -> Iterator[str]:
    """Simulate the exchange of a run, and yield the lines of a table that has what the run recorded beside it.

    Times of updates are those of the run: their mean for each rank, and one spread. All else follows from the rules.

    Raises:
        ResultsError: There is no such run, it exchanges nothing, was resumed, or has too few updates.
    """
    recorded = recorded_of(open_run(path))
    world = World(recorded.exchange, recorded.machine, seed, update_s=recorded.update_s)
    simulated = measure(world, recorded.num_updates)
    yield f"{'':28}{'run':>12}{'simulated':>12}{'differs by':>12}"
    for name, label in _LABELS.items():
        real, other = getattr(recorded.measured, name), getattr(simulated, name)
        differs = f"{other / real - 1:+.1%}" if real and real == real else "-"
        yield f"{label:28}{real:12.4g}{other:12.4g}{differs:>12}"


_LABELS = {
    "updates_per_s": "updates a second",
    "effective_step": "effective step",
    "age_updates": "message age (updates)",
    "received": "averaged an update",
    "skipped": "skipped an update",
    "weight_spread": "weights: standard deviation",
    "weight_min": "weights: least",
    "weight_max": "weights: greatest",
}


def recorded_of(run: Run) -> Recorded:
    """Read what a run recorded of its exchange, after a warm-up.

    Raises:
        ResultsError: See `compare`.
    """
    job = parse_job(run.job_toml, f"{run.path}/job.h5")
    gossip = job.gossip
    if run.num_ranks < 2 or gossip.method not in ("push-sum", "gala"):
        raise ResultsError(f"{run.path}: its ranks send each other no messages; there is nothing to be like")
    if job.record.every_updates != 1 or any(rank.restarts.num_rows for rank in run.ranks):
        raise ResultsError(f"{run.path}: was resumed, or did not record every update; choose a run of one piece")
    tables = [_rows(rank) for rank in run.ranks]
    begin_s = WARM_UP * min(float(rows["time_s"][-1]) for rows in tables)
    end_s = min(float(rows["time_s"][-1]) for rows in tables)
    span_s = end_s - begin_s
    parts = [
        {name: values[slice(*np.searchsorted(rows["time_s"], (begin_s, end_s)))] for name, values in rows.items()}
        for rows in tables
    ]
    made = sum(len(part["time_s"]) - 1 for part in parts)
    gaps = [np.diff(part["time_s"]) for part in parts]
    update_s = np.array([gap.mean() for gap in gaps])

    def total(name: str) -> float:
        return float(sum(part[name][-1] - part[name][0] for part in parts))

    at_s = np.linspace(begin_s, end_s, _NUM_MOMENTS + 1)[1:]
    # A weight holds until the next update of its rank.
    weights = np.stack(
        [rows["weight"][np.searchsorted(rows["time_s"], at_s, side="right") - 1] for rows in tables], axis=1
    )
    ages = np.concatenate([part["message_age_s"] for part in parts])
    hosts = Counter(str(rank.attributes.get("hostname", "")) for rank in run.ranks)
    return Recorded(
        # The exchange's own time is in that of the updates.
        Exchange(
            num_ranks=run.num_ranks,
            method=gossip.method,
            topology=gossip.topology,
            all_peers=gossip.peers == "all",
            weight_floor=gossip.weight_floor,
            message_bytes=0.0,
        ),
        Machine(
            update_s=float(update_s.mean()),
            update_spread=float(np.mean([gap.std() / gap.mean() for gap in gaps])),
            ranks_per_node=max(hosts.values()),
        ),
        update_s,
        round(float(np.mean([len(rows["time_s"]) for rows in tables]))),
        Measured(
            updates_per_s=made / span_s,
            efficiency=1.0,
            effective_step=total("moved") / made,
            age_updates=float(np.nanmean(ages)) / float(update_s.mean()),
            received=total("received") / made,
            skipped=total("skipped") / made,
            weight_spread=float(weights.std(axis=1).mean()),
            weight_min=float(weights.min()),
            weight_max=float(weights.max()),
            distance=float("nan"),
        ),
    )


def _rows(rank: RankFile) -> Rows:
    names = ("time_s", "weight", "moved", "received", "skipped", "message_age_s")
    rows = rank.updates.read(*names)
    if len(rows["time_s"]) < _FEWEST_UPDATES:
        raise ResultsError(f"{rank.path}: has {len(rows['time_s'])} updates; {_FEWEST_UPDATES} at least are needed")
    return rows
