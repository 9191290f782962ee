"""The actor-critic network: a trunk of layers, a head for the policy and one for the value.

Owns the architecture, its forward and backward pass. Knows nothing of rollouts.

The backward pass of the trunk is written out because an actor-critic computes the activations of its batch
while it acts: the policy does not change within a rollout, so training starts from the stored activations and
needs no forward pass of its own. Images are `[N, height, width, channels]` throughout, the layout the
processor's convolutions are fastest in; the flat vector holds a convolution's weight as `[out, height, width,
in]` to match.

The first convolution moves by 4 pixels, so it sees every square of 4 x 4 pixels as one pixel of 16 times the
channels, by which it moves by 1: the same sums, whose gradient takes half as long in bfloat16. And it takes the bytes
themselves, which bfloat16 holds exactly; that they count as [0, 1] is a factor on its weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch.nn import functional

from galampi.errors import UserError
from galampi.job import Network
from galampi.learning import kernels
from galampi.learning.actions import actions_of
from galampi.learning.parameters import Block, FlatParameters
from galampi.learning.spaces import Encoding

Tensor = torch.Tensor
LossFunction = Callable[[Tensor, Tensor, Tensor], Tensor]

CNN_CHANNELS = {"cnn": (32, 64, 64), "cnn-small": (32, 64, 32)}
CNN_KERNELS_AND_STRIDES = ((8, 4), (4, 2), (3, 1))
CNN_HIDDEN = 512


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


class Policy:
    """Policy and value of one network over a flat parameter vector.

    Attributes:
        parameters: The vector.
        actions: How outputs of the policy head become actions.
        layers: The trunk.
        input_shape: Of one observation: height, width, channels of an image; or its length.
        scale: Factor on the observations. The network computes with them as they are, and its first weights times this.
    """

    def __init__(
        self,
        network: Network,
        observation_space: gym.Space[Any],
        action_space: gym.Space[Any],
        *,
        seed: int,
        device: torch.device,
        precision: torch.dtype,
    ) -> None:
        self.actions = actions_of(action_space)
        self.device, self.precision = device, precision
        encoding = Encoding(observation_space)
        self._image, self.input_shape = _input_layout(encoding, network.kind)
        # A flat network takes an image as the space has it.
        self._flattens_channels_last = encoding.channels_last and not self._image
        self.scale = encoding.scale
        self.layers = _layers(network, self.input_shape, self._image)
        first_shape: tuple[int, ...] = self.input_shape
        if self.layers and isinstance(self.layers[0], Convolution):
            first_shape = self.layers[0].input_shape
        self._activation_shapes = [first_shape, *(layer.output_shape for layer in self.layers)]
        gain = math.sqrt(2)
        blocks = []
        scale = self.scale
        for layer in self.layers:
            blocks += [layer.weight_block(gain, scale), Block(layer.weight_shape[:1], 0, True)]
            scale = 1.0
        # The heads stay float32: they are small, and rounding log probabilities to 8 bits would blur every
        # gradient.
        width = self.layers[-1].output_shape[0] if self.layers else int(np.prod(self.input_shape))
        num_outputs = self.actions.num_outputs
        blocks += [Block((num_outputs, width), 0.01, False, scale=scale), Block((num_outputs,), 0, False)]
        blocks += [Block((1, width), 1.0, False, scale=scale), Block((1,), 0, False)]
        blocks += [Block((self.actions.num_free_parameters,), 0, False)]
        self.parameters = FlatParameters(blocks, precision, device, seed)

    def new_activations(self, *batch_shape: int) -> list[Tensor]:
        """Allocate what `forward` fills: the network's input, then the output of every layer of the trunk."""
        return [
            torch.zeros(*batch_shape, *shape, dtype=self.precision, device=self.device)
            for shape in self._activation_shapes
        ]

    @property
    def row_bytes(self) -> int:
        """Memory that the activations of one observation take."""
        return sum(math.prod(shape) for shape in self._activation_shapes) * self.precision.itemsize

    def encode(self, observations: np.ndarray, out: Tensor) -> None:
        """Write encoded observations [N, ...] as network input, images as `squares` of their channels."""
        if self._image:
            first = self.layers[0]
            assert isinstance(first, Convolution)
            observations = squares(observations, first.square, first.input_shape[:2])
        elif self._flattens_channels_last:
            observations = observations.transpose(0, 2, 3, 1)
        out.copy_(torch.from_numpy(observations).reshape(out.shape), non_blocking=True)

    @torch.no_grad()
    def forward(self, activations: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Fill the activations [N, ...] after the first, the input.

        Returns:
            Outputs of the policy head [N, outputs] and values [N], both float32 on the host.
        """
        weights = self.parameters.working
        for k, layer in enumerate(self.layers):
            layer.forward(activations[k], weights[2 * k], weights[2 * k + 1], activations[k + 1])
        outputs, values = self._heads(activations[-1].float(), weights[2 * len(self.layers) :])
        return outputs.cpu(), values.cpu()

    def backward(self, activations: Sequence[Tensor], loss: LossFunction) -> None:
        """Write the gradient of a loss of the heads' outputs into the parameters' gradient.

        Args:
            activations: [N, ...] as `forward` filled them.
            loss: Takes outputs [N, outputs], values [N] and the actions' free parameters; returns a scalar.
        """
        num_layers = len(self.layers)
        weights = self.parameters.working
        features = activations[-1].float().requires_grad_()
        head = [weight.detach().requires_grad_() for weight in weights[2 * num_layers :]]
        gradient, *head_gradients = torch.autograd.grad(
            loss(*self._heads(features, head), head[-1]), [features, *head], materialize_grads=True
        )
        gradients: list[Tensor] = []
        flowing: Tensor | None = gradient.to(self.precision)
        with torch.no_grad():
            for k in reversed(range(num_layers)):
                assert flowing is not None
                flowing, by_weight, by_bias = self.layers[k].backward(
                    flowing, activations[k], activations[k + 1], weights[2 * k], needs_input=k > 0
                )
                gradients = [by_weight, by_bias, *gradients]
        self.parameters.set_gradient([*gradients, *head_gradients])

    def sample(self, outputs: Tensor, generator: torch.Generator) -> np.ndarray:
        """Draw actions, [N] or [N, k] int64, or [N, k] float32, for outputs [N, outputs] on the host."""
        return self.actions.sample(outputs, self._free.cpu(), generator).numpy()

    @property
    def _free(self) -> Tensor:
        return self.parameters.working[-1]

    def _heads(self, features: Tensor, head: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        policy_weight, policy_bias, value_weight, value_bias, _ = head
        features = features.flatten(1)
        outputs = functional.linear(features, policy_weight, policy_bias)
        return outputs, functional.linear(features, value_weight, value_bias).squeeze(-1)


def squares(images: np.ndarray, side: int, shape: tuple[int, int]) -> np.ndarray:
    """Cut images into squares, each of which becomes the channels of one pixel.

    Args:
        images: [N, channels, height, width] uint8.
        side: Of a square in pixels: 1, 2, 4 or 8.
        shape: Squares in height and width; pixels beyond them are left out.

    Returns:
        [N, *shape, channels x side x side] uint8, a channel's rows of a square one after the other.
    """
    height, width = shape
    images = np.ascontiguousarray(images[:, :, : height * side, : width * side])
    # A row of a square is one word: moving words is four times as fast as moving bytes.
    words = images.view(f"u{side}").reshape(*images.shape[:2], height, side, width)
    return np.ascontiguousarray(words.transpose(0, 2, 4, 1, 3)).view(np.uint8).reshape(len(images), height, width, -1)


def has_convolutions(network: Network, observation_space: gym.Space[Any]) -> bool:
    """Tell whether the network for these observations begins with convolutions.

    Raises:
        UserError: The space is not supported, or does not fit the network.
    """
    return _input_layout(Encoding(observation_space), network.kind)[0]


def _input_layout(encoding: Encoding, kind: str) -> tuple[bool, tuple[int, ...]]:
    """Tell whether the input is an image, and the network's input shape."""
    if kind == "mlp" or (kind == "auto" and not encoding.is_image):
        return False, (math.prod(encoding.shape),)
    if not encoding.is_image:
        raise UserError(f"network.kind is {kind!r}, but observations are no images; must be 'mlp' for these")
    channels, *sides = encoding.shape
    return True, (*sides, channels)


def _layers(network: Network, input_shape: tuple[int, ...], image: bool) -> tuple[Convolution | Dense, ...]:
    layers: list[Convolution | Dense] = []
    if not image:
        for width in network.hidden_sizes:
            layers.append(Dense((width, input_shape[0]), "tanh", (width,)))
            input_shape = (width,)
        return tuple(layers)
    shape = input_shape
    channels = CNN_CHANNELS["cnn" if network.kind == "auto" else network.kind]
    for out, (kernel, stride) in zip(channels, CNN_KERNELS_AND_STRIDES, strict=True):
        height, width = ((side - kernel) // stride + 1 for side in shape[:2])
        if min(height, width) < 1:
            raise UserError(
                f"environment.id: images of {input_shape[0]} x {input_shape[1]} are too small;"
                " must be 36 x 36 at least, or set network.kind to 'mlp'"
            )
        square = 1 if layers else stride
        layers.append(Convolution((out, kernel, kernel, shape[2]), stride, (height, width, out), square))
        shape = (height, width, out)
    layers.append(Dense((CNN_HIDDEN, math.prod(shape)), "relu", (CNN_HIDDEN,)))
    return tuple(layers)
