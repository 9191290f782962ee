"""A stored policy as files that other programs open: safetensors and ONNX.

Sees learning and a run's policy, and no MPI.
"""

from __future__ import annotations

import importlib
import io
import json
import logging
import warnings
from contextlib import closing, redirect_stderr
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from galampi import __version__
from galampi.environments import Simulators, make_simulators
from galampi.environments.actuation import Actuation
from galampi.errors import USERS_FAILURES, UserError
from galampi.job.modules import one_line
from galampi.learning.moments import CLIP
from galampi.learning.plain import PlainNetwork
from galampi.policies.evaluation import make_learner
from galampi.policies.stored import StoredPolicy
from galampi.results.files import refuse_other_kind

CONSTANT = "constant."
"""What the names of buffers begin with that torch keeps in no state_dict."""
_MOST_TOLD = 300


def export_policy(stored: StoredPolicy, path: Path) -> None:
    """Write a policy as safetensors, with what is needed to rebuild it in the metadata entry `galampi`.

    Raises:
        UserError: safetensors is not installed, the environment is unknown, or the file cannot be written.
    """
    safetensors = _imported("safetensors.torch", "--policy")
    refuse_other_kind(path, ".safetensors")
    network, about = _plain(stored)
    tensors = {name: tensor.contiguous().clone() for name, tensor in network.state_dict().items()}
    # A module of the user's own may have drawn them.
    constants = {name: buffer for name, buffer in network.named_buffers() if name not in tensors}
    tensors |= {f"{CONSTANT}{name}": constant.contiguous().clone() for name, constant in constants.items()}
    content = safetensors.save(tensors, {"format": "pt", "galampi": json.dumps(about)})
    try:
        path.write_bytes(content)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from None


def export_onnx(stored: StoredPolicy, path: Path) -> None:
    """Write a policy as an ONNX graph from `observations` to `outputs` and `value`, for any number of rows.

    With a memory, from `observations` and `state` to those and `next_state`.

    Raises:
        UserError: onnx is not installed, the environment is unknown, or the file cannot be written.
    """
    _imported("onnxscript", "--onnx")
    refuse_other_kind(path, ".onnx")
    network, about = _plain(stored)
    inputs, outputs = {"observations": torch.zeros(2, *about["input_shape"])}, ["outputs", "value"]
    if about["state_size"]:
        inputs["state"] = torch.zeros(2, about["state_size"])
        outputs.append("next_state")
    for name, level in (("torch.onnx", logging.ERROR), ("torch.export", logging.CRITICAL)):
        logging.getLogger(name).setLevel(level)
    with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
        # The exporter warns of its own parts, and prints what it could not make a graph of.
        warnings.simplefilter("ignore")
        try:
            program = torch.onnx.export(
                network.eval(),
                tuple(inputs.values()),
                input_names=list(inputs),
                output_names=outputs,
                dynamic_shapes=({0: torch.export.Dim("rows")},) * len(inputs),
                dynamo=True,
                verbose=False,
            )
        except USERS_FAILURES as error:
            # Of a network of the user's own, whose way may depend on what it sees.
            why = one_line(error)
            raise UserError(
                f"--onnx: {stored.job.network.kind!r} cannot be made a graph: {why[:_MOST_TOLD]}; --policy writes it "
                "all the same"
            ) from error
    assert program is not None
    program.model.metadata_props["galampi"] = json.dumps(about)
    try:
        program.save(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from None


def _imported(module: str, option: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError:
        raise UserError(f"{option} needs {module.split('.')[0]}: pip install 'galampi[export]'") from None


def _plain(stored: StoredPolicy) -> tuple[PlainNetwork, dict[str, Any]]:
    """Return the network in torch's layouts, and what a program must know to play with it."""
    environment = stored.job.environment.model_copy(update={"num_envs": 1})
    with closing(make_simulators(environment, seed=0, num_threads=1, life_ends_return="auto")) as simulators:
        learner = make_learner(stored, simulators, action_seed=0)
        policy = learner.policy
        space, encoding = simulators.single_action_space, simulators.encoding
        is_masked = _is_masked(simulators)
    network = PlainNetwork(policy, learner.normalization)
    about = {
        "trunk": policy.trunk.description,
        "input_shape": policy.trunk.input_shape,
        "input_scale": policy.trunk.input_scale,
        "recurrent": stored.job.network.recurrent,
        "state_size": policy.recurrence.state_size if policy.recurrence is not None else 0,
        "masked": is_masked,
        "environment": environment.model_dump(mode="json", exclude={"num_envs"}),
        "policy": stored.source,
        "updates": stored.updates,
        "env_steps": stored.env_steps,
        "galampi_version": __version__,
    }
    if network.observation_mean is not None:
        about["observation_clip"] = CLIP
    bounds = encoding.low_and_range
    if encoding.is_image and len(policy.trunk.input_shape) == 1:
        # A flat network takes an image as the space has it.
        bounds = [(encoding.unlaid(low[None]).ravel(), encoding.unlaid(extent[None]).ravel()) for low, extent in bounds]
    told = [(_told(low), _told(extent)) for low, extent in bounds]
    if len(told) > 1:
        # What is where in a row that was put together of several.
        about["parts"] = [
            [part.name, part.kind, part.shape, part.start, *of_part]
            for part, of_part in zip(encoding.parts, told, strict=True)
        ]
    else:
        about["input_low"], about["input_range"] = told[0]
    return network, about | _about_actions(simulators.actuation, space)


def _is_masked(simulators: Simulators) -> bool | None:
    """Whether there are masks of actions, as a first observation tells; None where there is none to be had."""
    try:
        simulators.reset()
    except UserError:
        return None
    return simulators.masks is not None


def _told(values: np.ndarray) -> float | list[Any]:
    """Return values as JSON has them; one number if all are the same."""
    nested: list[Any] = values.tolist()
    return float(values.flat[0]) if (values == values.flat[0]).all() else nested


def _about_actions(actuation: Actuation, space: gym.Space[Any]) -> dict[str, Any]:
    """Return what a program must know to make an action of outputs."""
    if isinstance(space, gym.spaces.Discrete):
        return {"actions": "discrete", "first_action": int(space.start)}
    if not isinstance(space, gym.spaces.Box):
        first = (
            space.start.ravel().tolist() if isinstance(space, gym.spaces.MultiDiscrete) else [0] * len(actuation.least)
        )
        sizes = (actuation.most - actuation.least + 1).tolist()
        return {"actions": "multi-discrete", "sizes": sizes, "first_actions": first, "action_shape": space.shape}
    return {
        "actions": "gaussian",
        "whole_numbers": space.dtype is not None and space.dtype.kind in "iub",
        "middle": actuation.middle.tolist(),
        "half_range": actuation.half_range.tolist(),
        "low": _plain_numbers(actuation.low),
        "high": _plain_numbers(actuation.high),
        "action_shape": space.shape,
    }


def _plain_numbers(values: np.ndarray) -> list[float | None]:
    """Return numbers that JSON can hold; None where there is no bound."""
    return [float(value) if np.isfinite(value) else None for value in values]
