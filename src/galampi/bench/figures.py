"""The figures: what is compared with what, and what is to be reached.

Pure functions of the rounds' samples. A comparison is the median of its ratios round by round: what disturbs the
machine for a while disturbs both sides of a ratio.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

BF16, F32, ONE, SB3, EMULATORS = "2 ranks, bfloat16", "2 ranks, float32", "1 rank", "Stable-Baselines3", "emulators"
SAMPLE_FACTORY = "Sample Factory"
TWO = "2 ranks"
"""Those of the two precisions that this processor is faster in."""
SLOWED, SLOWED_ALLREDUCE = "4 ranks, one slowed", "4 ranks, one slowed, allreduce"
EXCHANGE_2, EXCHANGE_4 = "exchange of 2", "exchange of 4"

Round = Mapping[str, Any]


@dataclass(frozen=True)
class Figure:
    """A number that a round yields, and its goal.

    Attributes:
        name: What is measured.
        unit: Its unit.
        goal: To be reached.
        stretch: To be wished for.
        better: Whether more is better, or less.
        needs: Contestants it is computed from.
        of: Computes it from the samples of one round, by contestant.
    """

    name: str
    unit: str
    goal: float | None
    stretch: float | None
    better: Literal["more", "less"]
    needs: tuple[str, ...]
    of: Callable[[Round], float]

    def reaches(self, value: float, goal: float | None) -> bool | None:
        """Whether a value is as good as a goal; None if there is none."""
        if goal is None:
            return None
        return value >= goal if self.better == "more" else value <= goal


def _ratio(one: str, other: str) -> Callable[[Round], float]:
    return lambda samples: float(samples[one]["steps_per_s"] / samples[other]["steps_per_s"])


def _gossip_share(samples: Round) -> float:
    phases_s = samples[TWO]["phases_s"]
    return float(phases_s["gossip_s"] / sum(phases_s.values()))


FIGURES: Sequence[Figure] = (
    Figure("2 ranks, bfloat16, over Stable-Baselines3 A2C", "x", 3.5, 4.0, "more", (BF16, SB3), _ratio(BF16, SB3)),
    Figure("2 ranks, float32, over Stable-Baselines3 A2C", "x", 2.2, 3.0, "more", (F32, SB3), _ratio(F32, SB3)),
    Figure(
        "2 ranks over Sample Factory APPO",
        "x",
        None,
        None,
        "more",
        (TWO, SAMPLE_FACTORY),
        _ratio(TWO, SAMPLE_FACTORY),
    ),
    Figure(
        "2 ranks, bfloat16, over the emulators alone",
        "x",
        0.42,
        0.5,
        "more",
        (BF16, EMULATORS),
        _ratio(BF16, EMULATORS),
    ),
    Figure(
        "2 ranks, float32, over the emulators alone", "x", None, None, "more", (F32, EMULATORS), _ratio(F32, EMULATORS)
    ),
    Figure("gossip's share of an update, 2 ranks", "%", 2.0, 1.0, "less", (TWO,), lambda s: 100 * _gossip_share(s)),
    Figure(
        "gossip step, 6.75 MB, 2 ranks", "ms", 1.2, 0.8, "less", (EXCHANGE_2,), lambda s: 1e3 * s[EXCHANGE_2]["step_s"]
    ),
    Figure(
        "gossip step, 6.75 MB, 4 ranks", "ms", 3.0, 2.0, "less", (EXCHANGE_4,), lambda s: 1e3 * s[EXCHANGE_4]["step_s"]
    ),
    Figure(
        "memcpy's time over Put's, 6.75 MB",
        "x",
        0.85,
        0.95,
        "more",
        (EXCHANGE_2,),
        lambda s: s[EXCHANGE_2]["copy_s"] / s[EXCHANGE_2]["put_s"],
    ),
    Figure("2 ranks over 1, a core each", "x", 1.85, 1.95, "more", (TWO, ONE), _ratio(TWO, ONE)),
    Figure(
        "gossip over allreduce, 4 ranks, one slowed 3x",
        "x",
        1.8,
        2.5,
        "more",
        (SLOWED, SLOWED_ALLREDUCE),
        _ratio(SLOWED, SLOWED_ALLREDUCE),
    ),
    Figure("memory of a rank (PSS)", "MiB", 500, 400, "less", (TWO,), lambda s: s[TWO]["pss_bytes"] / 2**20),
    Figure("train to first update, 2 ranks", "s", 6.0, 4.0, "less", (TWO,), lambda s: s[TWO]["first_update_s"]),
)


def evaluate(figure: Figure, rounds: Sequence[Round]) -> list[float]:
    """Return the figure of every round in which all its contestants were measured."""
    return [figure.of(samples) for samples in rounds if all(name in samples for name in figure.needs)]


def summary(figure: Figure, rounds: Sequence[Round]) -> dict[str, Any]:
    """Return a figure as it stands in the results: median, least and greatest of the rounds, and whether it is enough.

    `value` is None if no round has it.
    """
    values = evaluate(figure, rounds)
    value = statistics.median(values) if values else None
    return {
        "name": figure.name,
        "unit": figure.unit,
        "better": figure.better,
        "goal": figure.goal,
        "stretch": figure.stretch,
        "value": value,
        "least": min(values, default=None),
        "greatest": max(values, default=None),
        "reaches_goal": None if value is None else figure.reaches(value, figure.goal),
        "reaches_stretch": None if value is None else figure.reaches(value, figure.stretch),
    }
