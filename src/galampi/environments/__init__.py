"""Environments: anybody's simulators as one vector with the same rules, watched where they run. Knows no policy."""

from galampi.environments.simulator import Failure
from galampi.environments.vector import Simulators, is_atari_game, make_simulators, time_limit

__all__ = ["Failure", "Simulators", "is_atari_game", "make_simulators", "time_limit"]
