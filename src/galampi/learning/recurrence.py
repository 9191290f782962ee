"""The memory of a policy: a recurrent layer between trunk and heads.

Owns the layer, its hidden states and how it is unrolled over time. Knows neither simulators nor losses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from galampi.learning.parameters import Block


@dataclass
class Memory:
    """Hidden states of B simulators on their way through T steps.

    Attributes:
        state: [B, S] float32, before the first step.
        keeps: [T, B] bool, whether the state goes on into a step; where it does not, the step begins with zeros.
    """

    state: Tensor
    keeps: Tensor

    def copy(self, num_steps: int) -> Memory:
        """Return the memory of the first steps, with a state of its own."""
        return Memory(self.state.clone(), self.keeps[:num_steps])


class Recurrence:
    """A gated recurrent unit (Cho et al. 2014) or long short-term memory (Hochreiter & Schmidhuber 1997), by autograd.

    In the forms of torch.nn.GRUCell and torch.nn.LSTMCell, s being the logistic function:

        gru:   r, u = s(W_ru x + U_ru h + b_ru);    n = tanh(W_n x + b_n + r (U_n h + c_n));    h <- (1 - u) n + u h
        lstm:  i, f, o = s(W_ifo x + U_ifo h + b_ifo);    g = tanh(W_g x + U_g h + b_g);    c <- f c + i g;
               h <- o tanh(c)

    The hidden state is h, or h and c one after the other. All of it is float32: it is small beside the trunk, and
    roundings would add up over time.

    Attributes:
        size: Length of h, which the heads see.
        state_size: Length of the hidden state.
        cell: The layer; its parameters are the working copies.
        blocks: Its part of the flat vector.
    """

    def __init__(
        self, kind: Literal["gru", "lstm"], num_features: int, size: int, device: torch.device, *, scale: float
    ) -> None:
        """Make a layer over features; `scale` is the factor that they still lack."""
        self.size = size
        self.state_size = size if kind == "gru" else 2 * size
        self.cell: nn.GRUCell | nn.LSTMCell = (nn.GRUCell if kind == "gru" else nn.LSTMCell)(num_features, size)
        self.cell.to(device)
        self._device = device
        by_input, by_state, *biases = (tuple(parameter.shape) for parameter in self.cell.parameters())
        self.blocks = (
            Block(by_input, 1.0, False, scale=scale),
            Block(by_state, 1.0, False),
            *(Block(shape, 0, False) for shape in biases),
        )

    def bind(self, weights: Sequence[Tensor]) -> None:
        """Make the weights, the working copies of `blocks`, the layer's own parameters."""
        for parameter, weight in zip(self.cell.parameters(), weights, strict=True):
            parameter.data = weight

    def new_memory(self, num_simulators: int) -> Memory:
        """Return the memory of simulators before a first step."""
        state = torch.zeros(num_simulators, self.state_size, device=self._device)
        return Memory(state, torch.ones(1, num_simulators, dtype=torch.bool))

    def unroll(self, features: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        """Go through T steps of B simulators.

        Args:
            features: [T x B, F], the simulators of a step one after the other.
            memory: Of the T steps; it is not changed.

        Returns:
            h after every step [T x B, H], and the hidden state after the last [B, S].
        """
        state, hidden = memory.state, []
        for x, keep in zip(features.view(*memory.keeps.shape, -1), memory.keeps.to(self._device), strict=True):
            state = advance(self.cell, x, torch.where(keep.unsqueeze(1), state, 0))
            hidden.append(state[:, : self.size])
        return torch.cat(hidden), state


def advance(cell: nn.GRUCell | nn.LSTMCell, x: Tensor, state: Tensor) -> Tensor:
    """Return the hidden state [B, S] after a step that sees features x [B, F]."""
    if isinstance(cell, nn.LSTMCell):
        return torch.cat(cell(x, state.chunk(2, 1)), 1)
    after: Tensor = cell(x, state)
    return after
