"""A trunk of the user's own: `network.kind = "module:Name"`.

Owns how it is built and what it must be; how its module is found is `galampi.job`'s to know.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import torch
from torch import nn

from galampi.environments.spaces import Encoding
from galampi.errors import USERS_FAILURES, UserError
from galampi.job import Network, as_lists, import_module
from galampi.job.modules import one_line


def users_module(network: Network, encoding: Encoding) -> tuple[nn.Module, int]:
    """Build the module that a job names, by calling it with the encoding and `network.kwargs`.

    Returns:
        The module, float32 on the processor, and the length of its features.

    Raises:
        UserError: It cannot be built, or is no network from observations [N, *shape] to features [N, width].
    """
    subject = f"network.kind is {network.kind!r}"
    name, _, attribute = network.kind.partition(":")
    import_module(name, f"network.kind: module {name!r}")
    make: Any = getattr(sys.modules[name], attribute, None)
    if not callable(make):
        raise UserError(f"{subject}; {name!r} has no such class or function")
    try:
        module = make(encoding, **as_lists(network.kwargs))
    except USERS_FAILURES as error:
        raise UserError(f"{subject}, and building it raises {one_line(error)}") from error
    if not isinstance(module, nn.Module):
        raise UserError(f"{subject}, which makes a {type(module).__name__}; must make a torch.nn.Module")
    _refuse_unknown_state(module, subject)
    width = _width(module, encoding, subject)
    _refuse_other_features(module, encoding, subject)
    return module, width


def _refuse_unknown_state(module: nn.Module, subject: str) -> None:
    """Refuse what neither gossip nor checkpoints would carry."""
    for name, parameter in module.named_parameters():
        if parameter.dtype != torch.float32:
            raise UserError(f"{subject}, whose parameter {name!r} is of {parameter.dtype}; must be of torch.float32")
    for name, buffer in module.named_buffers():
        if buffer.layout != torch.strided:
            raise UserError(
                f"{subject}, whose constant {name!r} is of layout {buffer.layout}; must be a dense tensor, of which a "
                "sparse one may be made in forward()"
            )
    kept = sorted(set(module.state_dict()) - {name for name, _ in module.named_parameters(remove_duplicate=False)})
    if kept:
        raise UserError(
            f"{subject}, whose buffer {kept[0]!r} would be neither averaged nor saved; what changes must be a "
            "parameter, and a constant be registered with persistent=False"
        )


def _width(module: nn.Module, encoding: Encoding, subject: str) -> int:
    """Try the module on two observations of zeros."""
    observations = torch.zeros(2, *encoding.shape)
    subject = f"{subject}, which for observations {list(observations.shape)}"
    try:
        with torch.enable_grad():
            features = module.eval()(observations)
    except USERS_FAILURES as error:
        raise UserError(f"{subject} raises {one_line(error)}") from error
    if not isinstance(features, torch.Tensor) or features.ndim != 2 or len(features) != 2 or not features.numel():
        shape = list(features.shape) if isinstance(features, torch.Tensor) else type(features).__name__
        raise UserError(f"{subject} returns {shape}; must be [2, width]")
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if trained and not features.requires_grad:
        raise UserError(
            f"{subject} returns features that have no gradient, as after detach(), so that its parameters would not "
            "learn; requires_grad_(False) says that this is meant"
        )
    try:
        if trained:
            torch.autograd.grad(features.sum(), trained, allow_unused=True)
    except USERS_FAILURES as error:
        raise UserError(f"{subject} returns features whose gradient raises {one_line(error)}") from error
    return int(features.shape[1])


def _refuse_other_features(module: nn.Module, encoding: Encoding, subject: str) -> None:
    """Refuse a module whose features of an observation depend on more than that: what learns must be what acted."""
    observations = torch.from_numpy(np.random.default_rng(0).random((3, *encoding.shape), np.float32))
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            features = module(observations)
            again = module(observations)
            if not features.isfinite().all():
                return
            alone = torch.cat([_alone(module, observation, subject) for observation in observations])
    except UserError:
        raise
    except USERS_FAILURES:
        # Such observations may be none that it can be shown.
        return
    told = "; what learns must be what acted"
    if not _are_close(features, again):
        raise UserError(
            f"{subject}, which returns other features when it is shown the same observations again{told}, so nothing "
            "may be drawn or kept in evaluation mode"
        )
    if not _are_close(features, alone):
        raise UserError(
            f"{subject}, whose features of an observation are others when it is shown alone{told}, so nothing may be "
            "taken over a batch"
        )


def _alone(module: nn.Module, observation: torch.Tensor, subject: str) -> torch.Tensor:
    try:
        features: torch.Tensor = module(observation[None])
    except USERS_FAILURES as error:
        raise UserError(f"{subject}, which for one observation alone raises {one_line(error)}") from error
    return features


def _are_close(features: torch.Tensor, others: torch.Tensor) -> bool:
    """Whether features are equal but for rounding, which depends on the number of rows."""
    return features.shape == others.shape and bool(
        torch.allclose(features, others, rtol=1e-3, atol=1e-4 * float(features.abs().max()))
    )
