"""The epsilon-ball: how far theory lets the ranks of a run be apart.

Owns the bound of Assran et al., "Gossip-based Actor-Learner Architectures for Deep Reinforcement Learning" (NeurIPS
2019, arXiv 1906.04585), Proposition 1, for the exchange that a run really made. Knows no figures.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from galampi.analysis.exchange import Exchange, replay
from galampi.errors import UntoldError
from galampi.job import Job
from galampi.results.distance import ConsensusDistance
from galampi.results.reader import Run

Floats = NDArray[np.float64]

_NUM_MOMENTS = 300
_NEGLIGIBLE = 1e-6
_MOST_VISITED = 1_000_000
"""Most updates to go back through, for all moments together; that takes about half a minute."""


@dataclass(frozen=True, eq=False)
class Bound:
    """The bound at moments at which the distances of a run are known.

    Attributes:
        moments: [K] indices of those moments in the distances.
        values: [K] the proposition's bound on the norm of all ranks' differences to their mean, stacked.
        sharp: [K] the same sum before its factors are replaced by alpha beta^(k+1-s); never above `values`.
        alpha: Constant of the proposition.
        beta: Constant of the proposition.
        has_estimates: Whether some norms of steps were not recorded, and are estimated.
    """

    moments: NDArray[np.int64]
    values: Floats
    sharp: Floats
    alpha: float
    beta: float
    has_estimates: bool


def bound(run: Run, job: Job, distance: ConsensusDistance) -> Bound | str:
    """Compute the bound from the steps and the exchange that a run recorded.

        ||X(k+1) - mean X(k+1)||  <=  sum over s <= k of r(k+1, s) ||G(s)||
                                  <=  alpha sum over s <= k of beta^(k+1-s) ||G(s)||

    X are the parameters of all ranks. k counts the updates of all ranks, one after the other, so G(s) is one optimizer
    step of one rank. r(k+1, s) is how much of that step still is a difference between the ranks: the averagings after
    it are a product Phi of matrices, with a virtual node for every message under way as in the paper, and r is the norm
    of Phi's column without its mean. alpha and beta are the pair of the smallest radius alpha beta / (1 - beta) that
    covers every r of the moments computed. So both hold for any directions of the steps, whatever the speed, weights
    and delays of the ranks were, but for parts of a millionth, and for step norms that had to be estimated.

    Args:
        run: Whose files are read.
        job: What the run was made with.
        distance: Between the run's ranks, of M moments.

    Returns:
        The bound at up to 300 of the distances' moments, fewer where messages mix so slowly that it would take long; or
        the reason why there is none.
    """
    if job.gossip.method in ("none", "allreduce"):
        return f"gossip.method is {job.gossip.method}: no messages are averaged"
    try:
        exchange = replay(run, job)
    except UntoldError as error:
        return str(error)
    step_norm = np.array(exchange.step_norm)
    center = np.eye(run.num_ranks) - 1 / run.num_ranks
    chosen = np.unique(np.linspace(0, len(distance.at) - 1, min(_NUM_MOMENTS, len(distance.at))).astype(np.int64))
    found: list[tuple[int, int, float]] = []
    greatest = np.zeros(0)
    num_visited = 0
    # Coarse to fine from the last one, so that the moments are spread over the run if there is no time for all.
    for moment in _coarse_to_fine(chosen[::-1].tolist()):
        nodes = [exchange.index(rank, int(update)) for rank, update in enumerate(distance.updates[moment])]
        if None in nodes:
            continue
        measured = {node: center[rank] for rank, node in enumerate(nodes) if node is not None}
        steps, norms, is_all = remains(exchange, measured, _MOST_VISITED - num_visited)
        num_visited += len(steps)
        if num_visited >= _MOST_VISITED:
            break
        if not is_all:
            continue
        # Of ranks that have just averaged to the same parameters no step is left.
        latest = int(steps[0]) if len(steps) else max(measured)
        found.append((moment, latest, float(norms @ step_norm[steps])))
        ages = latest - steps
        greatest = np.append(greatest, np.zeros(max(0, ages.max(initial=-1) + 1 - len(greatest))))
        np.maximum.at(greatest, ages, norms)
    if not found:
        if num_visited >= _MOST_VISITED:
            return f"messages mix so slowly that more than {_MOST_VISITED:,} updates are to be gone back through"
        return "too few updates since the last restart"
    if not greatest.any():
        return "the ranks had the same parameters at every moment that could be told"
    alpha, beta = constants(greatest)
    values = [0.0]
    for norm in exchange.step_norm:
        values.append(beta * (values[-1] + alpha * norm))
    moments, newest, sharp = zip(*sorted(found), strict=True)
    bounds = np.array(values)[1:][list(newest)]
    return Bound(np.array(moments), bounds, np.array(sharp), alpha, beta, exchange.has_estimates)


def _coarse_to_fine(moments: list[int]) -> list[int]:
    """Order moments so that the first few are spread over all."""
    order = sorted(range(len(moments)), key=lambda index: f"{index:016b}"[::-1])
    return [moments[index] for index in order]


def remains(
    exchange: Exchange, measured: dict[int, Floats], most_visited: int
) -> tuple[NDArray[np.int64], Floats, bool]:
    """Return which steps are still a difference between some parameters, and how much of each.

    Goes back from the parameters through every averaging they came from, as far as anything is left.

    Args:
        exchange: Of the run.
        measured: Update after which a rank's parameters were measured -> column of the centering matrix, [N].
        most_visited: Updates after which to stop.

    Returns:
        Updates, the newest first; the norm r of what each one's step is in the differences of the measured parameters
        to their mean; and whether these are all, so that nothing is left of steps not visited and of parameters from
        before the exchange begins.
    """
    open_ends = _before_averaging(exchange, measured)
    total = sum(_norm(column) for column in open_ends.values())
    steps: list[int] = []
    norms: list[float] = []
    update = max(open_ends) + 1
    is_all = True
    while is_all and total > _NEGLIGIBLE and update > 0:
        update -= 1
        column = open_ends.pop(update, None)
        if column is None:
            continue
        total -= _norm(column)
        kept = exchange.keep[update] * column
        if len(steps) == most_visited:
            is_all = False
            break
        steps.append(update)
        norms.append(_norm(kept if exchange.steps_first else column))
        sources = [(source, share * column) for source, share in exchange.messages[update]]
        for source, part in [(exchange.before[update], kept), *sources]:
            if source < 0:
                is_all = is_all and exchange.is_whole
                continue
            there = open_ends.get(source)
            open_ends[source] = part if there is None else there + part
            total += _norm(open_ends[source]) - (0.0 if there is None else _norm(there))
    return np.array(steps, np.int64), np.array(norms), is_all


def _before_averaging(exchange: Exchange, measured: dict[int, Floats]) -> dict[int, Floats]:
    """Return what measured parameters come from, where they have averaged after their update had sent."""
    if not exchange.averages_last:
        return dict(measured)
    open_ends: dict[int, Floats] = {}
    for update, column in measured.items():
        messages = exchange.afterwards.get(update, [])
        keep = 1 - sum(share for _, share in messages)
        for source, share in [(update, keep), *messages]:
            open_ends[source] = open_ends.get(source, 0) + share * column
    return open_ends


def _norm(vector: Floats) -> float:
    return math.sqrt(vector @ vector)


def constants(norms: Floats) -> tuple[float, float]:
    """Return alpha and beta with alpha beta^m >= norms[m - 1] for every m, of all such pairs the tightest.

    That is the pair with the least alpha beta / (1 - beta), the radius of the ball for optimizer steps of norm 1.

    Args:
        norms: [A] float64, greatest norm r of a step m updates later, for m = 1 to A; not all 0.

    Returns:
        alpha and beta, 0 < beta < 1.
    """
    betas = 1 - np.logspace(-5, -0.005, 600)
    # Only steps of which something is left say anything, and of a slow exchange there are many.
    m = np.flatnonzero(norms) + 1
    log_norms = np.log(norms[m - 1])
    log_alpha = np.array([(log_norms - m * log_beta).max() for log_beta in np.log(betas)])
    log_radius = log_alpha + np.log(betas) - np.log1p(-betas)
    best = int(np.argmin(log_radius))
    return float(np.exp(log_alpha[best])), float(betas[best])
