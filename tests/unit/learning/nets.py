"""Networks as users write them, good and bad."""

import numpy as np
import torch
from torch import nn

from galampi.job import Network
from galampi.learning.architectures import describe, image_layers, sequential


def nature(encoding):
    return sequential(describe(image_layers(Network(kind="cnn"), encoding.shape)))


class Trunk(nn.Module):
    """With what a flat vector may get wrong: tied and frozen and unused parameters, a constant, a scalar."""

    def __init__(self, encoding, width=6, depth=2):
        super().__init__()
        self.first = nn.Linear(encoding.shape[0], width)
        self.again = nn.ModuleList([nn.Linear(width, width)] * depth)
        self.frozen = nn.Linear(width, width).requires_grad_(False)
        self.unused = nn.Parameter(torch.ones(3))
        self.factor = nn.Parameter(torch.tensor(0.5))
        self.register_buffer("shift", torch.full((width,), 0.25), persistent=False)

    def forward(self, x):
        x = torch.tanh(self.first(x)) * self.factor + self.shift
        for layer in self.again:
            x = torch.tanh(layer(x))
        return self.frozen(x)


class Forgets(nn.Module):
    """Keeps a constant where nothing moves it."""

    def __init__(self, encoding):
        super().__init__()
        self.constant = torch.ones(encoding.shape[0], 3)

    def forward(self, x):
        return x @ self.constant


class Branches(nn.Module):
    """Goes another way for other observations, which no graph does."""

    def __init__(self, encoding):
        super().__init__()
        self.layer = nn.Linear(encoding.shape[0], 3)

    def forward(self, x):
        return torch.stack([self.layer(row) if row[0] > 100 else 2 * self.layer(row) for row in x])


class Raises(nn.Module):
    def __init__(self, encoding):
        raise ValueError("no\nwidth")


class Counts(nn.Module):
    def __init__(self, encoding):
        super().__init__()
        self.norm = nn.BatchNorm1d(encoding.shape[0])

    def forward(self, x):
        return self.norm(x)


class Images(nn.Module):
    def __init__(self, encoding):
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 2)

    def forward(self, x):
        return self.convolution(x).flatten(1)


class Unflat(nn.Module):
    def __init__(self, encoding):
        super().__init__()

    def forward(self, x):
        return x[None]


class Double(nn.Linear):
    def __init__(self, encoding):
        super().__init__(encoding.shape[0], 2, dtype=torch.float64)


class Detached(nn.Linear):
    def __init__(self, encoding):
        super().__init__(encoding.shape[0], 2)

    def forward(self, x):
        return super().forward(x).detach()


class Centred(nn.Linear):
    """Takes the mean of what it is shown together."""

    def __init__(self, encoding):
        super().__init__(encoding.shape[0], 2)

    def forward(self, x):
        return super().forward(x) - x.mean()


class Social(Centred):
    """Cannot do with one observation."""

    def forward(self, x):
        return nn.functional.batch_norm(super().forward(x), None, None, training=True)


class Drops(Centred):
    def forward(self, x):
        return nn.functional.dropout(super().forward(x), 0.5)


class Ages(Centred):
    def __init__(self, encoding):
        super().__init__(encoding)
        self.register_buffer("age", torch.zeros(()), persistent=False)

    def forward(self, x):
        self.age += 1
        return super().forward(x) * self.age


class Overwrites(Centred):
    """Changes in place what its gradient needs."""

    def forward(self, x):
        return nn.Linear.forward(self, x).exp().mul_(2)


class Embeds(nn.Module):
    def __init__(self, encoding, sparse):
        super().__init__()
        self.signs = nn.Embedding(2, 4, sparse=sparse)

    def forward(self, x):
        return self.signs((x > 0).long()).flatten(1)


class Stacked(nn.Sequential):
    def __init__(self, encoding, widths, more):
        # As lists join, and no others.
        sizes = [encoding.shape[0]] + widths + more["widths"]
        super().__init__(*(nn.Linear(sizes[i], sizes[i + 1]) for i in range(len(sizes) - 1)))
        widths.clear()


def text(encoding):
    return "no module"


class Drawn(nn.Module):
    """With constants that are drawn, some of them complex."""

    def __init__(self, encoding):
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.register_buffer("waves", torch.from_numpy(np.random.normal(size=(encoding.shape[0], 4))), persistent=False)
        self.register_buffer("turns", torch.polar(torch.ones(2), torch.tensor([0.5, 1.0])), persistent=False)
        self.register_buffer("even", torch.tensor([True, False]), persistent=False)

    def forward(self, x):
        turned = torch.view_as_complex((x @ self.waves.to(x.dtype)).float().unflatten(1, (2, 2))) * self.turns
        return self.layer(torch.view_as_real(turned).flatten(1).to(x.dtype))


class Sparse(nn.Module):
    def __init__(self, encoding):
        super().__init__()
        self.layer = nn.Linear(encoding.shape[0], 3)
        self.register_buffer("graph", torch.eye(3).to_sparse(), persistent=False)

    def forward(self, x):
        return torch.sparse.mm(self.graph, self.layer(x).T).T


class Shares(nn.Module):
    """Has one constant in two modules, and one that is a number seen many times."""

    def __init__(self, encoding):
        super().__init__()
        self.parts = nn.ModuleList([nn.Linear(encoding.shape[0], 3), nn.Linear(3, 3)])
        shared = torch.ones(3)
        for part in self.parts:
            part.register_buffer("mask", shared, persistent=False)
        self.register_buffer("seen", torch.tensor(0.5).expand(2, 3), persistent=False)

    def forward(self, x):
        for part in self.parts:
            x = part(x) * part.mask + self.seen[0]
        return x
