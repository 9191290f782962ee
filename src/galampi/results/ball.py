"""The epsilon-ball: how far the ranks are apart, and how far theory lets them be.

Owns the bound of Assran et al., "Gossip-based Actor-Learner Architectures for Deep Reinforcement Learning" (NeurIPS
2019, arXiv 1906.04585), Proposition 1, with constants computed for the graph and the delays of a recorded run. Knows
no figures.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from galampi.job import Job
from galampi.results.reader import Run
from galampi.results.statistics import last

Floats = NDArray[np.float64]

_MOST_STEPS = 4000
_MOST_DELAY = 64
_NEGLIGIBLE = 1e-9


@dataclass(frozen=True)
class Mixing:
    """How the ranks of a run exchanged parameters, as if all were in step.

    Attributes:
        num_ranks: Nodes of the graph.
        hops: Distances to the out-peers, in the order of the rotation.
        together: Whether one averaging step takes in a message of every in-peer, rather than of one in rotation.
        updates_per_average: Updates between two averaging steps.
        delay: Most updates between the sending of a message and its averaging, at least 1.
    """

    num_ranks: int
    hops: tuple[int, ...]
    together: bool
    updates_per_average: int
    delay: int


def decay(mixing: Mixing, num_steps: int = _MOST_STEPS) -> Floats:
    """Return how much of a change of one update is still a difference between ranks after some updates.

    With all ranks in step, averaging steps of 1 + |S| equal parts and messages that are d updates old,

        y(k) = z(k-1) + G(k)
        z(k) = (y(k) + sum over hops h in S of shift_h z(k-d)) / (1 + |S|)      at an averaging step, else y(k)

    where shift_h moves values h ranks on. The graph is circulant, so Fourier modes over the ranks do not mix, and the
    spectral norm of what G(s) has become in z(k), without its mean over the ranks, is the greatest magnitude among the
    modes but the constant one. Old messages enter as the paper's virtual nodes do: as further state.

    Returns:
        [num_steps or fewer]: entry m - 1 is that norm for m = k + 1 - s, the greatest over the phases of the rotation
        and the delays 1 to `mixing.delay`; the last entry is negligible, or the series was cut.
    """
    hops = np.array(mixing.hops)
    period = mixing.updates_per_average * (1 if mixing.together else len(hops))
    modes = np.exp(-2j * np.pi * np.arange(1, mixing.num_ranks // 2 + 1) / mixing.num_ranks)
    parts = 1 / (1 + (len(hops) if mixing.together else 1))
    phases = np.arange(period)
    greatest = np.zeros(num_steps)
    longest = 0
    for delay in range(1, mixing.delay + 1):
        history = [np.zeros((period, len(modes)), complex)] * delay
        now = np.ones((period, len(modes)), complex)
        for step in range(num_steps):
            event, is_event = np.divmod(phases + step, mixing.updates_per_average)
            averages = (is_event == 0)[:, None]
            if mixing.together:
                shift = sum(modes**hop for hop in mixing.hops)
            else:
                shift = modes[None, :] ** hops[event % len(hops)][:, None]
            now = np.where(averages, parts * (now + shift * history[-delay]), now)
            history = [*history[1:], now]
            norm = max(float(np.abs(each).max()) for each in history)
            greatest[step] = max(greatest[step], float(np.abs(now).max()))
            longest = max(longest, step + 1)
            if norm < _NEGLIGIBLE:
                break
    return greatest[:longest]


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


@dataclass(frozen=True, eq=False)
class Bound:
    """The bound over the time of a run.

    Attributes:
        at_s: [K] job times.
        values: [K] bound on the norm of all ranks' differences to their mean, stacked.
        alpha: Constant of the proposition.
        beta: Constant of the proposition.
        mixing: What they were computed from.
    """

    at_s: Floats
    values: Floats
    alpha: float
    beta: float
    mixing: Mixing


def bound(run: Run, job: Job) -> Bound | str:
    """Compute the bound of a run from its recorded steps.

        ||X(k+1) - mean X(k+1)|| <= alpha sum over s = 0..k of beta^(k+1-s) ||G(s)||

    X are the parameters of all ranks, G(s) their optimizer steps. Steps that were not recorded are interpolated in
    time, and ranks are laid side by side by time. All ranks start from the same parameters.

    Returns:
        The bound, or the reason why there is none.
    """
    if run.num_ranks == 1:
        return "there is one rank"
    if job.gossip.method in ("none", "allreduce"):
        return f"gossip.method is {job.gossip.method}: no messages are averaged"
    mixing = _mixing(run, job)
    if isinstance(mixing, str):
        return mixing
    first = run.ranks[0].updates.read("update", "time_s")
    updates = np.arange(1, int(first["update"][-1]) + 1)
    at_s = np.interp(updates, first["update"], first["time_s"])
    squares = np.zeros(len(updates))
    for rank in run.ranks:
        rows = rank.updates.read("time_s", "step_norm")
        known = np.isfinite(rows["step_norm"])
        if not known.any():
            return f"{rank.path.name} has no column step_norm: the run is of a galampi that did not record it"
        squares += np.interp(at_s, rows["time_s"][known], rows["step_norm"][known]) ** 2
    alpha, beta = constants(decay(mixing))
    from scipy.signal import lfilter

    # e(k+1) = beta (e(k) + alpha ||G(k)||) is the sum of the proposition.
    values = lfilter([alpha * beta], [1, -beta], np.sqrt(squares))
    return Bound(at_s, np.asarray(values, np.float64), alpha, beta, mixing)


def _mixing(run: Run, job: Job) -> Mixing | str:
    """Take from the files how often messages were averaged and how old they were."""
    together = job.gossip.method == "gala" or job.gossip.peers == "all"
    rates, delays = [], []
    for rank in run.ranks:
        rows = rank.updates.read("message_age_s")["message_age_s"]
        ages_s = rows[np.isfinite(rows)]
        if not len(ages_s):
            return f"{rank.path.name} shows no message that was averaged"
        num_updates = int(last(rank.updates, "update"))
        rates.append(int(last(rank.updates, "received")) / num_updates)
        update_s = float(last(rank.updates, "time_s")) / num_updates
        delays.append(float(np.percentile(ages_s, 95)) / update_s)
    out_peers = run.ranks[0].attributes.get("out_peers", [])
    hops = tuple((int(peer) - run.ranks[0].rank) % run.num_ranks for peer in out_peers)
    if not hops:
        return f"{run.ranks[0].path.name} does not say who it sent to"
    messages_per_average = len(hops) if together else 1
    return Mixing(
        num_ranks=run.num_ranks,
        hops=hops,
        together=together,
        updates_per_average=max(1, math.ceil(messages_per_average / min(rates) - 0.05)),
        delay=min(_MOST_DELAY, max(1, math.ceil(max(delays)))),
    )
