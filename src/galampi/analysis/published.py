"""Learning curves others have published, as numbers, to draw behind one's own.

Each is for env steps of 4 emulator frames without sticky actions.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Curve:
    """A published learning curve.

    Attributes:
        env_steps: Env steps of each point.
        returns: Mean raw episodic return of each point.
        source: Where it is from and what it is the mean of.
    """

    env_steps: tuple[float, ...]
    returns: tuple[float, ...]
    source: str


FRAME_SKIP = 4
"""Emulator frames of an env step of every curve here."""

_MILLIONS = (1e6, 2e6, 3e6, 4e6, 5e6, 6e6, 8e6, 10e6)
_BASELINES = "OpenAI baselines A2C, 16 simulators, mean of 6 runs, read off its published curves"
_RETURNS = {
    "Pong": (-20.1, -16.3, -1.0, 10.4, 14.4, 16.5, 18.0, 18.5),
    "Breakout": (2.9, 18.9, 50, 81.5, 114, 144, 222, 275),
    "Qbert": (353, 633, 1053, 2029, 2961, 3420, 4214, 4471),
    "SpaceInvaders": (210, 256, 399, 518, 595, 629, 676, 688),
    "Seaquest": (595, 730, 790, 1064, 1467, 1620, 1716, 1741),
    "BeamRider": (428, 684, 975, 1218, 1563, 1723, 2236, 2477),
}

A2C_CURVES = {f"ALE/{game}-v5": Curve(_MILLIONS, returns, _BASELINES) for game, returns in _RETURNS.items()}
"""Environment id to the published A2C curve of that game."""
