"""The figures of a report: what each shows, and its caption.

`drawing` owns how things look; the others, one for each part of a report, what is shown.
"""

from galampi.analysis.figures.exchange import distances, message_age, messages, pairs, weights
from galampi.analysis.figures.learning import JobCurve, dots, learning_curves, training
from galampi.analysis.figures.resources import energy, phases, speed

__all__ = [
    "JobCurve",
    "distances",
    "dots",
    "energy",
    "learning_curves",
    "message_age",
    "messages",
    "pairs",
    "phases",
    "speed",
    "training",
    "weights",
]
