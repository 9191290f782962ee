"""Learning: rollouts, networks, the A2C learner over one flat parameter vector. Has never heard of MPI."""

from galampi.learning.a2c import Learner, Losses, resolve_device, resolve_precision
from galampi.learning.architectures import has_large_convolutions
from galampi.learning.collector import RolloutCollector
from galampi.learning.parameters import lerp
from galampi.learning.rollout import Episode, Rollout

__all__ = [
    "Episode",
    "Learner",
    "Losses",
    "Rollout",
    "RolloutCollector",
    "has_large_convolutions",
    "lerp",
    "resolve_device",
    "resolve_precision",
]
