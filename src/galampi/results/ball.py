"""The epsilon-ball: how far theory lets the ranks of a run be apart.

Owns the bound of Assran et al., "Gossip-based Actor-Learner Architectures for Deep Reinforcement Learning" (NeurIPS
2019, arXiv 1906.04585), Proposition 1, for the exchange that a run really made. Knows no figures.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from galampi.errors import UntoldError
from galampi.job import Job
from galampi.results.exchange import Exchange, replay
from galampi.results.reader import ConsensusDistance, Run

Floats = NDArray[np.float64]

_NUM_MOMENTS = 300
_NEGLIGIBLE = 1e-6


@dataclass(frozen=True, eq=False)
class Bound:
    """The bound at moments at which the distances of a run are known.

    Attributes:
        moments: [K] indices of those moments in the distances.
        values: [K] the proposition's bound on the norm of all ranks' differences to their mean, stacked.
        sharp: [K] the same sum before its factors are replaced by alpha beta^(k+1-s); never above `values`.
        alpha: Constant of the proposition.
        beta: Constant of the proposition.
    """

    moments: NDArray[np.int64]
    values: Floats
    sharp: Floats
    alpha: float
    beta: float


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

    Returns:
        The bound at up to 300 of the distances' moments, or the reason why there is none.
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
    moments, newest, sharp = [], [], []
    greatest = np.zeros(0)
    for moment in chosen.tolist():
        nodes = [exchange.index(rank, int(update)) for rank, update in enumerate(distance.updates[moment])]
        if None in nodes:
            continue
        remaining = remains(exchange, {node: center[rank] for rank, node in enumerate(nodes) if node is not None})
        if remaining is None:
            continue
        steps, norms = remaining
        moments.append(moment)
        newest.append(int(steps[0]))
        sharp.append(float(norms @ step_norm[steps]))
        ages = steps[0] - steps
        greatest = np.append(greatest, np.zeros(max(0, ages[-1] + 1 - len(greatest))))
        np.maximum.at(greatest, ages, norms)
    if not moments:
        return "too few updates since the last restart"
    alpha, beta = constants(greatest)
    values = [0.0]
    for norm in exchange.step_norm:
        values.append(beta * (values[-1] + alpha * norm))
    return Bound(np.array(moments), np.array(values)[1:][newest], np.array(sharp), alpha, beta)


def remains(exchange: Exchange, measured: dict[int, Floats]) -> tuple[NDArray[np.int64], Floats] | None:
    """Return which steps are still a difference between some parameters, and how much of each.

    Goes back from the parameters through every averaging they came from, as far as anything is left.

    Args:
        exchange: Of the run.
        measured: Update after which a rank's parameters were measured -> column of the centering matrix, [N].

    Returns:
        Updates, the newest first, and the norm r of what each one's step is in the differences of the measured
        parameters to their mean; None if that depends on parameters from before the exchange begins.
    """
    open_ends = dict(measured)
    total = sum(_norm(column) for column in open_ends.values())
    steps, norms = [], []
    update = max(open_ends) + 1
    while total > _NEGLIGIBLE and update > 0:
        update -= 1
        column = open_ends.pop(update, None)
        if column is None:
            continue
        total -= _norm(column)
        kept = exchange.keep[update] * column
        steps.append(update)
        norms.append(_norm(kept))
        sources = [(source, share * column) for source, share in exchange.messages[update]]
        for source, part in [(exchange.before[update], kept), *sources]:
            if source < 0:
                if not exchange.is_whole:
                    return None
                continue
            there = open_ends.get(source)
            open_ends[source] = part if there is None else there + part
            total += _norm(open_ends[source]) - (0.0 if there is None else _norm(there))
    return np.array(steps), np.array(norms)


def _norm(vector: Floats) -> float:
    return math.sqrt(vector @ vector)


def constants(norms: Floats) -> tuple[float, float]:
    """Return alpha and beta with alpha beta^m >= norms[m - 1] for every m, of all such pairs the tightest.

    That is the pair with the least alpha beta / (1 - beta), the radius of the ball for optimizer steps of norm 1.
    """
    betas = 1 - np.logspace(-5, -0.005, 600)
    m = np.arange(1, len(norms) + 1)
    with np.errstate(divide="ignore"):
        log_alpha = (np.log(norms)[None, :] - m[None, :] * np.log(betas)[:, None]).max(axis=1)
    log_radius = log_alpha + np.log(betas) - np.log1p(-betas)
    best = int(np.argmin(log_radius))
    return float(np.exp(log_alpha[best])), float(betas[best])
