"""The trunk for observations of several parts, as a module of torch: a cnn for each image, an mlp for the rest.

Knows how a row is divided; nothing of parameters in a flat vector.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from galampi.environments.spaces import Encoding
from galampi.job import Network
from galampi.learning.architectures import describe, image_layers, num_outputs, sequential, vector_layers


class Joined(nn.Module):
    """Features of rows [N, length]: those of every image and of all vectors together, one after the other.

    Attributes:
        images: Of each part that is an image, the network that sees it.
        vectors: What sees all other parts, one after the other; None if there are none.
        width: Length of the features.
        description: How to build it: each network as `architectures.Description`, and the columns it sees.
    """

    def __init__(self, encoding: Encoding, network: Network) -> None:
        """Build the network with orthogonal weights, of gain sqrt(2), and biases 0.

        Raises:
            UserError: An image is too small.
        """
        super().__init__()
        self._images = [part for part in encoding.parts if part.kind == "image"]
        self._vectors = [part for part in encoding.parts if part.kind == "vector"]
        seeing = [image_layers(network, part.shape) for part in self._images]
        self.images = nn.ModuleList(sequential(describe(layers)) for layers in seeing)
        self.width = sum(num_outputs(layers, 0) for layers in seeing)
        self.vectors: nn.Sequential | None = None
        self.description: dict[str, Any] = {
            "images": [
                {"part": part.name, "columns": _ends(part.columns), "shape": part.shape, "modules": describe(layers)}
                for part, layers in zip(self._images, seeing, strict=True)
            ]
        }
        if self._vectors:
            length = sum(math.prod(part.shape) for part in self._vectors)
            layers = vector_layers(network, length)
            self.vectors = sequential(describe(layers))
            self.width += num_outputs(layers, length)
            columns = [_ends(part.columns) for part in self._vectors]
            self.description["vectors"] = {"columns": columns, "modules": describe(layers)}
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.orthogonal_(parameter, math.sqrt(2))
            else:
                nn.init.zeros_(parameter)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Return features [N, width] of rows [N, length]."""
        features = [
            seeing(rows[:, part.columns].reshape(-1, *part.shape))
            for part, seeing in zip(self._images, self.images, strict=True)
        ]
        if self.vectors is not None:
            features.append(self.vectors(torch.cat([rows[:, part.columns] for part in self._vectors], 1)))
        return torch.cat(features, 1)


def _ends(columns: slice) -> list[int]:
    return [columns.start, columns.stop]
