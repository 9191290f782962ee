"""Learning: simulators, rollouts, the A2C learner over one flat parameter vector. Has never heard of MPI."""

from galampi.learning.a2c import Learner, Losses, resolve_device, resolve_precision
from galampi.learning.architectures import has_large_convolutions
from galampi.learning.collector import RolloutCollector
from galampi.learning.envs import Simulators, is_atari_game, make_simulators, time_limit
from galampi.learning.memory import keep_freed_memory
from galampi.learning.parameters import lerp
from galampi.learning.rollout import Episode, Rollout
from galampi.learning.simulator import Failure

__all__ = [
    "Episode",
    "Failure",
    "Learner",
    "Losses",
    "Rollout",
    "RolloutCollector",
    "Simulators",
    "has_large_convolutions",
    "is_atari_game",
    "keep_freed_memory",
    "lerp",
    "make_simulators",
    "resolve_device",
    "resolve_precision",
    "time_limit",
]
