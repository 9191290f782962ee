"""The layers of a trunk whose backward pass is written out.

Owns their forward and backward pass and how images lie in memory. Knows nothing of observations.

An actor-critic computes the activations of its batch while it acts: the policy does not change within a rollout, so
training starts from the stored activations and needs no forward pass of its own. Images are `[N, height, width,
channels]` throughout, the layout the processor's convolutions are fastest in; the flat vector holds a convolution's
weight as `[out, height, width, in]` to match.

A convolution that moves by 4 pixels sees every square of 4 x 4 pixels as one pixel of 16 times the channels, by which
it moves by 1: the same sums, whose gradient takes half as long in bfloat16.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from galampi.learning import kernels
from galampi.learning.parameters import Block

Tensor = torch.Tensor

_WORDS = {1: "u1", 2: "u2", 4: "u4", 8: "u8", 16: "c16"}
"""A type of numpy for each number of bytes that are moved as one."""


@dataclass(frozen=True)
class Convolution:
    """A convolution without padding, followed by a rectifier.

    Attributes:
        weight_shape: out channels, kernel height, kernel width, in channels; in pixels.
        stride: In both directions, in pixels.
        output_shape: height, width, out channels.
        square: Side of the squares of pixels that input and weight hold as channels, see `squares`; it divides kernel
            and stride. With 1 they hold pixels.
    """

    weight_shape: tuple[int, int, int, int]
    stride: int
    output_shape: tuple[int, int, int]
    square: int = 1

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of the part of the input that it reads, in squares."""
        _, *kernel, channels = self.weight_shape
        height, width = (
            ((out - 1) * self.stride + side) // self.square
            for out, side in zip(self.output_shape[:2], kernel, strict=True)
        )
        return height, width, channels * self.square**2

    def weight_block(self, gain: float, scale: float) -> Block:
        """Describe the weight, in the vector [out, height, width, in]; the working copy is as `squares` has inputs."""
        out, height, width, channels = self.weight_shape
        side = self.square
        if side == 1:
            return Block(self.weight_shape, gain, True, scale=scale)
        shape = (out, height // side, side, width // side, side, channels)
        return Block(shape, gain, True, axes=(0, 1, 3, 5, 2, 4), scale=scale)

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor, out: Tensor) -> None:
        """Compute `out = relu(x * weight + bias)`; x: [N, h, w, in], out: [N, h', w', out channels]."""
        weight = weight.flatten(3)
        y = functional.conv2d(x.permute(0, 3, 1, 2), weight.permute(0, 3, 1, 2), bias, self.stride // self.square)
        torch.clamp_min(y.permute(0, 2, 3, 1), 0, out=out)

    def backward(
        self, gradient: Tensor, x: Tensor, y: Tensor, weight: Tensor, needs_input: bool
    ) -> tuple[Tensor | None, Tensor, Tensor]:
        """Return the gradients of x (if needed), weight and bias; `y` is what forward wrote.

        That of the weight has its last axes flattened.
        """
        gradient = kernels.relu_backward(gradient.view(y.shape), y)
        by_input, by_weight, by_bias = kernels.convolution_backward(
            gradient.permute(0, 3, 1, 2),
            x.permute(0, 3, 1, 2),
            weight.flatten(3).permute(0, 3, 1, 2),
            self.stride // self.square,
            needs_input=needs_input,
        )
        return by_input.permute(0, 2, 3, 1) if by_input is not None else None, by_weight.permute(0, 2, 3, 1), by_bias


@dataclass(frozen=True)
class Dense:
    """A matrix multiplication, followed by a rectifier or a hyperbolic tangent.

    Attributes:
        weight_shape: out, in.
        activation: "relu" or "tanh".
        output_shape: out.
    """

    weight_shape: tuple[int, int]
    activation: str
    output_shape: tuple[int]

    def weight_block(self, gain: float, scale: float) -> Block:
        """Describe the weight."""
        return Block(self.weight_shape, gain, True, scale=scale)

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor, out: Tensor) -> None:
        """Compute `out = activation(x weight^T + bias)`; x: [N, ...] is flattened, out: [N, out]."""
        y = functional.linear(x.flatten(1), weight, bias)
        if self.activation == "relu":
            torch.clamp_min(y, 0, out=out)
        else:
            torch.tanh(y, out=out)

    def backward(
        self, gradient: Tensor, x: Tensor, y: Tensor, weight: Tensor, needs_input: bool
    ) -> tuple[Tensor | None, Tensor, Tensor]:
        """Return the gradients of x (flattened, if needed), weight and bias; `y` is what forward wrote."""
        if self.activation == "relu":
            gradient = kernels.relu_backward(gradient, y)
        else:
            gradient = kernels.tanh_backward(gradient, y)
        by_input = gradient @ weight if needs_input else None
        return by_input, gradient.t().contiguous() @ x.flatten(1), gradient.sum(0)


Layer = Convolution | Dense


def squares(images: np.ndarray, side: int, shape: tuple[int, int]) -> np.ndarray:
    """Cut images into squares, each of which becomes the channels of one pixel.

    Args:
        images: [N, channels, height, width].
        side: Of a square in pixels: 1, 2, 4 or 8; of bytes or, up to 4, float32.
        shape: Squares in height and width; pixels beyond them are left out.

    Returns:
        [N, *shape, channels x side x side], a channel's rows of a square one after the other.
    """
    height, width = shape
    images = np.ascontiguousarray(images[:, :, : height * side, : width * side])
    # A row of a square is one word: moving words is four times as fast as moving bytes.
    word = _WORDS[side * images.itemsize]
    words = images.view(word).reshape(*images.shape[:2], height, side, width)
    cut = np.ascontiguousarray(words.transpose(0, 2, 4, 1, 3)).view(images.dtype)
    return cut.reshape(len(images), height, width, -1)
