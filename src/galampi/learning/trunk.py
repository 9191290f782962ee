"""The trunk of a policy: from encoded observations to features, and back from their gradient to that of its weights.

Owns the two ways to compute it, one written out and one by autograd, and the memory its activations take. Knows
neither actions nor values.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from galampi.environments.spaces import Encoding
from galampi.errors import USERS_FAILURES, UserError
from galampi.job import Network
from galampi.job.modules import one_line
from galampi.learning.architectures import describe, image_layers, sees_images, vector_layers
from galampi.learning.joined import Joined
from galampi.learning.layers import Convolution, Layer, squares
from galampi.learning.parameters import Block
from galampi.learning.users_module import users_module

Tensor = torch.Tensor


class Trunk(ABC):
    """A network from observations to features.

    Its activations are the input, then what it keeps for the way back, the features last.

    Attributes:
        blocks: Its part of the flat vector.
        num_features: Length of the features, flattened.
        features_scale: Factor that the features still lack; the first to multiply them has it in its weights.
        input_shape: Of one observation as `encode` takes it.
        input_scale: Factor on an observation that is counted in.
        description: How to build it without this package, as JSON has it.
    """

    description: Any

    def __init__(
        self,
        encoding: Encoding,
        blocks: Sequence[Block],
        activations: Sequence[tuple[tuple[int, ...], torch.dtype]],
        device: torch.device,
        *,
        features_scale: float = 1.0,
    ) -> None:
        """Keep what every trunk has; `activations` are shape and type of each, of one observation."""
        self.blocks = tuple(blocks)
        self._activations = tuple(activations)
        self._device = device
        self.num_features = math.prod(activations[-1][0])
        self.features_scale = features_scale
        self.input_shape = encoding.shape
        self.input_scale = encoding.scale
        self._weights: Sequence[Tensor] = ()

    def new_activations(self, *batch_shape: int) -> list[Tensor]:
        """Allocate what `encode` and `forward` fill."""
        return [
            torch.zeros(*batch_shape, *shape, dtype=dtype, device=self._device) for shape, dtype in self._activations
        ]

    @property
    def constants(self) -> np.ndarray:
        """What computes beside the parameters and may have been drawn, as bytes: [C] uint8."""
        return np.zeros(0, np.uint8)

    def load_constants(self, values: np.ndarray) -> None:
        """Compute with the constants of another trunk of this kind.

        Raises:
            UserError: They are others.
        """
        if len(values) != len(self.constants):
            raise UserError(
                f"network.kind: the network's constants (buffers) take {len(self.constants)} bytes; those that it is "
                f"to go on with took {len(values)}"
            )

    @property
    def row_bytes(self) -> int:
        """Memory that the activations of one observation take."""
        return sum(math.prod(shape) * dtype.itemsize for shape, dtype in self._activations)

    def bind(self, weights: Sequence[Tensor]) -> None:
        """Compute with these weights from now on, the working copies of `blocks`, whatever they come to hold."""
        self._weights = weights

    @abstractmethod
    def encode(self, observations: np.ndarray, out: Tensor) -> None:
        """Write encoded observations [N, ...] as the first activation."""

    @abstractmethod
    def forward(self, activations: Sequence[Tensor]) -> None:
        """Fill the activations [N, ...] after the first."""

    @abstractmethod
    def backward(self, activations: Sequence[Tensor], gradient: Tensor) -> list[Tensor]:
        """Return the gradients of the weights for that of the features, [N, ...] float32."""


class WrittenTrunk(Trunk):
    """Layers one after the other, whose backward pass is written out and starts from the stored activations.

    The network takes bytes as they are, which bfloat16 holds exactly; that they count as [0, 1] is a factor on its
    first weights.

    Attributes:
        layers: The layers.
    """

    def __init__(
        self, layers: Sequence[Layer], encoding: Encoding, device: torch.device, precision: torch.dtype
    ) -> None:
        self.layers = tuple(layers)
        self.description = describe(layers)
        blocks: list[Block] = []
        scale = encoding.scale
        for layer in layers:
            blocks += [layer.weight_block(math.sqrt(2), scale), Block(layer.weight_shape[:1], 0, True)]
            scale = 1.0
        self._first = layers[0] if layers and isinstance(layers[0], Convolution) else None
        first_shape = self._first.input_shape if self._first is not None else (math.prod(encoding.shape),)
        shapes = [first_shape, *(layer.output_shape for layer in layers)]
        super().__init__(encoding, blocks, [(shape, precision) for shape in shapes], device, features_scale=scale)
        self._precision = precision
        self._encoding = encoding
        if self._first is None:
            self.input_shape = (math.prod(encoding.shape),)

    def encode(self, observations: np.ndarray, out: Tensor) -> None:
        """Write encoded observations [N, ...] as network input, images as `squares` of their channels."""
        if self._first is not None:
            observations = squares(observations, self._first.square, self._first.input_shape[:2])
        else:
            observations = self._flat(observations)
        out.copy_(torch.from_numpy(observations).reshape(out.shape), non_blocking=True)

    @property
    def input_order(self) -> np.ndarray | None:
        """Which input of a flat network each number of an image is, in the order of the space, [length]; else None."""
        if self._first is not None or not self._encoding.is_image:
            return None
        numbers = np.arange(self.input_shape[0]).reshape(1, *self._encoding.shape)
        order: np.ndarray = np.argsort(self._flat(numbers).ravel())[self._encoding.unlaid(numbers).ravel()]
        return order

    def _flat(self, observations: np.ndarray) -> np.ndarray:
        return observations.transpose(0, 2, 3, 1) if self._encoding.channels_last else observations

    @torch.no_grad()
    def forward(self, activations: Sequence[Tensor]) -> None:
        """Fill the activations [N, ...] after the first."""
        for k, layer in enumerate(self.layers):
            layer.forward(activations[k], self._weights[2 * k], self._weights[2 * k + 1], activations[k + 1])

    @torch.no_grad()
    def backward(self, activations: Sequence[Tensor], gradient: Tensor) -> list[Tensor]:
        """Return the gradients of the weights for that of the features, [N, ...] float32."""
        gradients: list[Tensor] = []
        flowing: Tensor | None = gradient.to(self._precision)
        for k in reversed(range(len(self.layers))):
            assert flowing is not None
            flowing, by_weight, by_bias = self.layers[k].backward(
                flowing, activations[k], activations[k + 1], self._weights[2 * k], needs_input=k > 0
            )
            gradients = [by_weight, by_bias, *gradients]
        return gradients


class ModuleTrunk(Trunk):
    """Any module of torch, from observations [N, *shape] in [0, 1] or their own units to features [N, width].

    Trained by autograd: the forward pass is computed anew. The module stays in its evaluation mode, for what is learnt
    from must be what has acted.

    Attributes:
        module: The module; its parameters are the working copies.
    """

    def __init__(
        self,
        module: nn.Module,
        width: int,
        encoding: Encoding,
        device: torch.device,
        precision: torch.dtype,
        description: Any,
    ) -> None:
        blocks = [Block(tuple(p.shape), 0, True, start=p.detach().clone()) for p in module.parameters()]
        # Bytes are kept as such.
        dtype = torch.uint8 if encoding.dtype == np.uint8 else torch.float32
        super().__init__(encoding, blocks, [(encoding.shape, dtype), ((width,), precision)], device)
        self._constants = [_own(buffer.detach().cpu()) for buffer in _buffers(module)]
        self.module = _cast(module.to(device), precision).eval()
        self.description = description
        self._precision = precision
        try:
            self.forward(self.new_activations(2))
        except torch.OutOfMemoryError:
            raise
        except USERS_FAILURES as error:
            raise UserError(
                f"network.kind: the network raises {one_line(error)}, in {str(precision).removeprefix('torch.')} on "
                f"{device}; a constant of its own, if it has one, must be moved with it, as "
                "register_buffer(..., persistent=False) does"
            ) from error

    @property
    def constants(self) -> np.ndarray:
        """The module's buffers as they were made, as bytes: [C] uint8."""
        parts = [constant.reshape(-1).view(torch.uint8).numpy() for constant in self._constants]
        return np.concatenate([np.zeros(0, np.uint8), *parts])

    def load_constants(self, values: np.ndarray) -> None:
        """Compute with the constants that another module of this kind has made."""
        super().load_constants(values)
        at = 0
        for constant, buffer in zip(self._constants, _buffers(self.module), strict=True):
            stop = at + constant.nbytes
            constant.view(-1).view(torch.uint8).copy_(torch.from_numpy(values[at:stop].copy()))
            buffer.copy_(constant)
            at = stop

    def bind(self, weights: Sequence[Tensor]) -> None:
        """Make the weights the module's own parameters."""
        super().bind(weights)
        for parameter, weight in zip(self.module.parameters(), weights, strict=True):
            parameter.data = weight

    def encode(self, observations: np.ndarray, out: Tensor) -> None:
        """Write encoded observations [N, ...] as they are."""
        out.copy_(torch.from_numpy(observations), non_blocking=True)

    @torch.no_grad()
    def forward(self, activations: Sequence[Tensor]) -> None:
        """Fill the activations [N, ...] after the first."""
        activations[1].copy_(self._features(activations[0]))

    def backward(self, activations: Sequence[Tensor], gradient: Tensor) -> list[Tensor]:
        """Return the gradients of the weights for that of the features, [N, ...] float32."""
        parameters = list(self.module.parameters())
        gradients = [torch.zeros_like(parameter) for parameter in parameters]
        # What the user has frozen stays as it is.
        trained = [k for k, parameter in enumerate(parameters) if parameter.requires_grad]
        features = self._features(activations[0])
        if features.requires_grad:
            found = torch.autograd.grad(
                features, [parameters[k] for k in trained], gradient.to(features.dtype), allow_unused=True
            )
            for k, each in zip(trained, found, strict=True):
                # Of an embedding it may be sparse.
                gradients[k] = gradients[k] if each is None else each.to_dense()
        return gradients

    def _features(self, observations: Tensor) -> Tensor:
        x = observations.to(self._precision)
        features: Tensor = self.module(x * self.input_scale if self.input_scale != 1 else x)
        return features


def _cast(module: nn.Module, precision: torch.dtype) -> nn.Module:
    """Compute in a precision; what is complex stays so, of which torch's own cast would take the real part."""
    for part in module.modules():
        for parameter in part.parameters(recurse=False):
            parameter.data = parameter.data.to(precision)
        for name, buffer in part.named_buffers(recurse=False):
            # Of memory that is another's, or seen several times, nothing could be written.
            setattr(part, name, _own(buffer.to(precision) if buffer.is_floating_point() else buffer))
    return module


def _buffers(module: nn.Module) -> list[Tensor]:
    """Return a module's buffers, one that several of its parts share as often as it is there."""
    return [buffer for _, buffer in module.named_buffers(remove_duplicate=False)]


def _own(tensor: Tensor) -> Tensor:
    return tensor.clone(memory_format=torch.contiguous_format)


def make_trunk(
    network: Network, encoding: Encoding, *, seed: int, device: torch.device, precision: torch.dtype
) -> Trunk:
    """Make the trunk that a job asks for.

    Args:
        network: The settings.
        encoding: Of the observations.
        seed: Of initial values that a module draws itself; the same on all ranks.
        device: Where to compute.
        precision: Of weights and activations.

    Raises:
        UserError: The network does not fit the observations, or the user's module fails.
    """
    # The values that a module begins with are drawn from torch's own generator.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if ":" in network.kind:
            module, width = users_module(network, encoding)
            return ModuleTrunk(
                module, width, encoding, device, precision, network.model_dump(include={"kind", "kwargs"})
            )
        if not sees_images(network, encoding):
            layers = vector_layers(network, math.prod(encoding.shape))
        elif (
            network.hidden_sizes != Network().hidden_sizes
            and (encoding.is_image or network.kind != "auto")
            and all(part.kind == "image" for part in encoding.parts)
        ):
            raise UserError(
                "network.hidden_sizes does nothing: observations are images, for which network.kind "
                f"{network.kind!r} takes a cnn"
            )
        elif encoding.is_image:
            layers = image_layers(network, encoding.shape)
        else:
            joined = Joined(encoding, network)
            return ModuleTrunk(joined, joined.width, encoding, device, precision, joined.description)
    return WrittenTrunk(layers, encoding, device, precision)
