"""How far ranks are apart, from their sketches.

Lies with the files, not with what else is computed from them, for it is a method of a run that users call; it needs
nothing that reading does not.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from galampi.errors import one_of
from galampi.results.sketch import relative_error

Sketches = Mapping[str, NDArray[Any]]
"""Rows of the sketches of one rank: column name to array."""


@dataclass(frozen=True, eq=False)
class ConsensusDistance:
    """How far the ranks are apart, estimated from sketches."""

    at: NDArray[Any]
    """`[M]`: job time in seconds, or number of the update, of each moment."""
    times_s: NDArray[np.float64]
    """`[M]`: job time of rank 0 at each moment."""
    to_mean: NDArray[np.float64]
    """`[M, N]`: distance of every rank's z to the (unweighted) mean over the ranks."""
    norm: NDArray[np.float64]
    """`[M, N]`: norm of every rank's z, to compare with."""
    between: NDArray[np.float64]
    """`[N, N]`: distance between every two ranks, mean over the last half of the moments; `[0, 0]` if not asked for."""
    updates: NDArray[np.int64]
    """`[M, N]`: update after which each rank was sketched."""
    apart_s: NDArray[np.float64]
    """`[M]`: seconds between the first and the last of the sketches that were compared."""
    relative_error: float
    """Relative standard error of the distances and norms."""

    @property
    def relative(self) -> NDArray[np.float64]:
        """`[M, N]`: distance of every rank to the mean, over the norm of a rank's z (mean over the ranks)."""
        return np.asarray(self.to_mean / self.norm.mean(axis=1, keepdims=True))


def consensus_distance(
    tables: Sequence[Sketches], align: Literal["time", "update"], *, pairs: bool = True
) -> ConsensusDistance:
    """Estimate how far each rank's parameters are from the mean of all; see `Run.consensus_distance`.

    Args:
        tables: Sketches of every rank, one at least, all of one size.
        align: What makes sketches of two ranks one moment.
        pairs: Whether to compute the distances between every two ranks.
    """
    columns = {"time": "time_s", "update": "update"}
    column = columns[one_of("align", align, columns)]
    positions = [table[column] for table in tables]
    at = _common_stretch(positions) if align == "time" else reduce(np.intersect1d, positions)
    rows = np.stack([_nearest(each, at) for each in positions], axis=1)
    to_mean = np.empty((len(at), len(tables)))
    norm = np.empty_like(to_mean)
    between = np.zeros((len(tables), len(tables)) if pairs else (0, 0))
    for row, chosen in enumerate(rows):
        sketches = np.stack(
            [table["value"][each].astype(np.float64) for each, table in zip(chosen, tables, strict=True)]
        )
        differences = sketches - sketches.mean(axis=0)
        to_mean[row] = np.linalg.norm(differences, axis=1)
        norm[row] = np.linalg.norm(sketches, axis=1)
        if pairs and row >= len(at) // 2:
            squares, products = to_mean[row] ** 2, differences @ differences.T
            between += np.sqrt(np.maximum(squares[:, None] + squares - 2 * products, 0))
    between /= max(1, len(at) - len(at) // 2)
    np.fill_diagonal(between, 0)
    updates, times_s = (
        np.stack([table[column][each] for each, table in zip(rows.T, tables, strict=True)], axis=1)
        for column in ("update", "time_s")
    )
    return ConsensusDistance(
        at,
        times_s[:, 0],
        to_mean,
        norm,
        between,
        updates,
        np.ptp(times_s, axis=1),
        relative_error=relative_error(tables[0]["value"].shape[1]),
    )


def _common_stretch(times_s: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Return the moments of the first rank that all ranks' sketches reach, each rank's times given."""
    # A rank that began late or fell silent has no sketch near the others' first or last ones.
    begin, end = max(each[0] for each in times_s), min(each[-1] for each in times_s)
    # The same moment of all ranks lies an update apart, another one a period between two sketches.
    periods = np.concatenate([np.diff(each) for each in times_s])
    if len(periods) and begin - end > np.median(periods) / 2:
        return times_s[0][:0]
    first, last = (_nearest(times_s[0], moment) for moment in (begin, end))
    return times_s[0][first : last + 1]


def _nearest(positions: NDArray[Any], at: NDArray[Any]) -> NDArray[np.int64]:
    """Return the index of the position nearest to each of some others; positions ascend."""
    after = np.clip(np.searchsorted(positions, at), 1, max(1, len(positions) - 1))
    before = after - 1
    after = np.minimum(after, len(positions) - 1)
    return np.where(np.abs(at - positions[before]) <= np.abs(positions[after] - at), before, after)
