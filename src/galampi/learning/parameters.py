"""The parameters: one flat float32 vector, and the copy of it that the network computes with.

Owns the vector's layout, its initial value and its gradient. Knows nothing of what the parameters mean.
The vector is all that other ranks, the optimizer and checkpoints ever see.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch


@dataclass(frozen=True)
class Block:
    """A tensor inside the flat vector.

    Attributes:
        shape: Shape, outputs first, as it lies in the vector.
        gain: Gain of the orthogonal initial value; 0 starts at zero.
        low_precision: Whether the working copy may be of lower precision than float32.
        axes: Order of the axes in the working copy; none: as in the vector.
        scale: The working copy holds the parameters times this.
        start: Initial value, where it is neither.
    """

    shape: tuple[int, ...]
    gain: float
    low_precision: bool
    axes: tuple[int, ...] = ()
    scale: float = 1.0
    start: torch.Tensor | None = None

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


class FlatParameters:
    """The flat vector `z`, its gradient, and a working copy cut into tensors.

    `z` and `gradient` are host arrays, whatever the device: the optimizer, the gossip and the checkpoints
    work there. The working copy lives on the device, in the precision asked for where a block permits it.

    After the P parameters both may hold M numbers more, which go with them wherever they go and which no network
    computes with.

    Attributes:
        z: [P + M] float32. Whoever changes it calls `refresh` next.
        gradient: [P + M] float32.
        num_parameters: P.
        working: The working copy, one tensor a block.
        version: Counts the calls of `refresh`.
    """

    def __init__(
        self, blocks: Sequence[Block], precision: torch.dtype, device: torch.device, seed: int, num_more: int = 0
    ) -> None:
        # The working copy is one buffer for each precision: a refresh is then two casts, however many blocks
        # there are.
        if any(b.low_precision and not a.low_precision for a, b in pairwise(blocks)):
            raise ValueError("low-precision blocks must come first")
        self._num_low = sum(block.size for block in blocks if block.low_precision)
        self.num_parameters = sum(block.size for block in blocks)
        length = self.num_parameters + num_more
        generator = torch.Generator().manual_seed(seed)
        # From pinned memory a GPU copies at the rate of the bus.
        pinned = device.type == "cuda"
        self._z = torch.empty(length, pin_memory=pinned)
        torch.cat(
            [*(_initial_value(block, generator).flatten() for block in blocks), torch.zeros(num_more)], out=self._z
        )
        self._gradient = torch.zeros(length, pin_memory=pinned)
        self._low = torch.empty(self._num_low, dtype=precision, device=device)
        self._full = torch.empty(self.num_parameters - self._num_low, device=device)
        self.z: np.ndarray = self._z.numpy()
        self.gradient: np.ndarray = self._gradient.numpy()
        self.version = 0
        self.working: list[torch.Tensor] = []
        # Of each block its part of the gradient, with the axes of the working copy.
        self._gradient_views: list[torch.Tensor] = []
        # Blocks whose working copy is more than a cast: its tensor, their part of z with its axes, and their scale.
        self._arranged: list[tuple[torch.Tensor, torch.Tensor, float]] = []
        self._shapes = [block.shape for block in blocks]
        self._scales = [block.scale for block in blocks]
        start = 0
        for block in blocks:
            end = start + block.size
            if block.low_precision:
                flat = self._low[start:end]
            else:
                flat = self._full[start - self._num_low : end - self._num_low]
            axes = block.axes or tuple(range(len(block.shape)))
            z, gradient = (v[start:end].view(block.shape).permute(axes) for v in (self._z, self._gradient))
            self.working.append(flat.view(z.shape))
            self._gradient_views.append(gradient)
            if block.axes or block.scale != 1:
                self._arranged.append((self.working[-1], z, block.scale))
            start = end
        self.refresh()

    def blocks(self) -> list[torch.Tensor]:
        """Return copies of the blocks of the vector, each in its shape there."""
        flat = torch.split(self._z[: self.num_parameters].clone(), [math.prod(shape) for shape in self._shapes])
        return [values.view(shape) for values, shape in zip(flat, self._shapes, strict=True)]

    def refresh(self) -> None:
        """Make the working copy that of `z`, rounded."""
        self._low.copy_(self._z[: self._num_low])
        self._full.copy_(self._z[self._num_low : self.num_parameters])
        for tensor, z, scale in self._arranged:
            tensor.copy_(z * scale)
        self.version += 1

    # Some versions of torch (2.6) give zeros that require a gradient for what a loss does not depend on.
    @torch.no_grad()
    def set_gradient(self, gradients: Sequence[torch.Tensor]) -> None:
        """Turn the gradients by the working tensors, in their order, into that by `z` and write it into `gradient`.

        Their last axes may be flattened.
        """
        for view, gradient, scale in zip(self._gradient_views, gradients, self._scales, strict=True):
            view.copy_(gradient.view(view.shape))
            if scale != 1:
                view.mul_(scale)


def lerp(z: np.ndarray, other: np.ndarray, share: float) -> None:
    """Move `z`, [P] float32, in place to z + share (other - z), in one pass over memory; share in [0, 1]."""
    torch.from_numpy(z).lerp_(torch.from_numpy(other), share)


def _initial_value(block: Block, generator: torch.Generator) -> torch.Tensor:
    if block.start is not None:
        return block.start
    if block.gain == 0:
        return torch.zeros(block.shape)
    weight = torch.empty(block.shape)
    torch.nn.init.orthogonal_(weight, block.gain, generator)
    return weight
