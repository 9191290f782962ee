"""Which layers a kind of network has, for the observations it is to see.

Owns the sizes of the networks that a job can name, and how they are said in torch's own modules. Computes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import nn

from galampi.environments.spaces import Encoding
from galampi.errors import UserError
from galampi.job import Network
from galampi.learning.layers import Convolution, Dense, Layer

CNN_CHANNELS = {"cnn": (32, 64, 64), "cnn-small": (32, 64, 32), "cnn-tiny": (16,)}
CNN_KERNELS_AND_STRIDES = {
    "cnn": ((8, 4), (4, 2), (3, 1)),
    "cnn-small": ((8, 4), (4, 2), (3, 1)),
    "cnn-tiny": ((3, 1),),
}
CNN_HIDDEN = {"cnn": 512, "cnn-small": 512, "cnn-tiny": 128}
LEAST_SIDE = {"cnn": 36, "cnn-small": 36, "cnn-tiny": 3}
"""Pixels of the smallest image that the convolutions leave something of."""

Description = list[list[Any]]
"""Modules of a Sequential, each its name in `torch.nn` and its arguments: `[["Linear", 4, 64], ["Tanh"]]`."""


def has_large_convolutions(network: Network, encoding: Encoding) -> bool:
    """Tell whether the network begins with convolutions that take most of the time, and have a written backward pass.

    Raises:
        UserError: The observations do not fit the network.
    """
    return sees_images(network, encoding) and encoding.is_image and _cnn_for(network, encoding.shape) != "cnn-tiny"


def sees_images(network: Network, encoding: Encoding) -> bool:
    """Tell whether the network sends images through convolutions.

    Raises:
        UserError: There are none, though the network is for images.
    """
    if ":" in network.kind or network.kind == "mlp":
        return False
    has_images = any(part.kind == "image" for part in encoding.parts)
    if not has_images and network.kind != "auto":
        raise UserError(f"network.kind is {network.kind!r}, but observations are no images; must be 'mlp' for these")
    return has_images


def image_layers(network: Network, shape: tuple[int, ...]) -> tuple[Layer, ...]:
    """Return the layers that see images of channels, height and width.

    cnn: Mnih et al. 2015. cnn-small: Mnih et al. 2016 as the paper of GALA has it. cnn-tiny: Young & Tian 2019
    (MinAtar, arXiv 1903.03176).

    Raises:
        UserError: The images are too small.
    """
    kind = _cnn_for(network, shape)
    channels, height, width = shape
    if min(height, width) < LEAST_SIDE[kind]:
        least = LEAST_SIDE[kind]
        others = "'mlp'" if kind == "cnn-tiny" else "'cnn-tiny' or 'mlp'"
        raise UserError(
            f"environment.id: images of {height} x {width} are too small; must be {least} x {least} at least, or set "
            f"network.kind to {others}"
        )
    layers: list[Layer] = []
    for out, (kernel, stride) in zip(CNN_CHANNELS[kind], CNN_KERNELS_AND_STRIDES[kind], strict=True):
        height, width = ((side - kernel) // stride + 1 for side in (height, width))
        square = 1 if layers else stride
        layers.append(Convolution((out, kernel, kernel, channels), stride, (height, width, out), square))
        channels = out
    hidden = CNN_HIDDEN[kind]
    return (*layers, Dense((hidden, height * width * channels), "relu", (hidden,)))


def vector_layers(network: Network, length: int) -> tuple[Layer, ...]:
    """Return the layers that see vectors of a length."""
    layers = []
    for width in network.hidden_sizes:
        layers.append(Dense((width, length), "tanh", (width,)))
        length = width
    return tuple(layers)


def describe(layers: Sequence[Layer]) -> Description:
    """Say layers as torch's modules, which take images with their channels first."""
    description: Description = []
    for layer in layers:
        if isinstance(layer, Convolution):
            out, kernel, _, channels = layer.weight_shape
            description += [["Conv2d", channels, out, kernel, layer.stride], ["ReLU"]]
        else:
            if not description or description[-2][0] == "Conv2d":
                description += [["Flatten"]]
            out, width = layer.weight_shape
            description += [["Linear", width, out], ["ReLU" if layer.activation == "relu" else "Tanh"]]
    return description or [["Flatten"]]


def sequential(description: Description) -> nn.Sequential:
    """Build the modules of a description."""
    return nn.Sequential(*(getattr(nn, name)(*sizes) for name, *sizes in description))


def num_outputs(layers: Sequence[Layer], length: int) -> int:
    """Return the length of what layers make of inputs of a length, all axes flattened."""
    return math.prod(layers[-1].output_shape) if layers else length


def _cnn_for(network: Network, shape: tuple[int, ...]) -> str:
    if network.kind != "auto":
        return network.kind
    return "cnn" if min(shape[1:]) >= LEAST_SIDE["cnn"] else "cnn-tiny"
