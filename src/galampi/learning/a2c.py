"""Advantage actor-critic: the loss, its gradient, the step.

Owns the learner: its network, optimizer and random numbers. Knows nothing of other ranks, which may change
the parameters between two updates.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from galampi.environments.spaces import Encoding
from galampi.errors import UserError
from galampi.job import Job
from galampi.learning import kernels
from galampi.learning.actions import masked
from galampi.learning.moments import Normalization
from galampi.learning.optimizer import make_optimizer
from galampi.learning.policy import Policy
from galampi.learning.returns import gae
from galampi.learning.rollout import Rollout

REFERENCE_SIMULATORS = 16
"""Simulators for which a learning rate is stated."""


@dataclass(frozen=True)
class Losses:
    """Means over the valid rows of a rollout, before their coefficients.

    Attributes:
        policy_loss: -log pi(a) A.
        value_loss: (R - V)^2.
        entropy: Of the policy, in nats.
    """

    policy_loss: float
    value_loss: float
    entropy: float


class Learner:
    """One rank's A2C learner (Mnih et al. 2016; the synchronous form of Algorithm S3).

    Attributes:
        policy: The network.
        generator: Random numbers of the actions.
        normalization: What it makes of observations and rewards.
        z: [P + M] float32 on the host: the parameters, then the moments of what is normalised. Whoever changes it calls
            `refresh` next.
        parameters: [P] the first part of it.
        moments: [M] the last part of it.
        gradient: [P + M] float32 on the host, of the last `compute_gradient`.
    """

    def __init__(
        self,
        job: Job,
        observation_space: gym.Space[Any],
        action_space: gym.Space[Any],
        *,
        total_simulators: int,
        seed: int,
        action_seed: int | tuple[int, ...],
        device: str,
        precision: str,
    ) -> None:
        """Create a learner.

        Args:
            job: The settings.
            observation_space: Of one simulator.
            action_space: Of one simulator.
            total_simulators: Of all ranks; the learning rate may depend on it.
            seed: Of the initial parameters, the same on all ranks.
            action_seed: Of the actions, different on each rank.
            device: As `resolve_device` returns it.
            precision: As `resolve_precision` returns it.

        Raises:
            UserError: A space is not supported, or does not fit the network.
        """
        self._settings = settings = job.learner
        # By default cuDNN rounds what convolutions multiply to 10 bits; float32 is to mean float32.
        torch.backends.cudnn.allow_tf32 = False
        encoding, columns = Encoding(observation_space), None
        if settings.normalize_observations:
            columns = _columns(encoding, job.environment.id)
            encoding = encoding.normalized()
        num_moments = Normalization.size(columns, returns=settings.normalize_returns)
        self.policy = Policy(
            job.network,
            encoding,
            action_space,
            seed=seed,
            device=torch.device(device),
            precision=getattr(torch, precision),
            num_more=num_moments,
        )
        self.z = self.policy.parameters.z
        self.gradient = self.policy.parameters.gradient
        num_parameters = self.policy.parameters.num_parameters
        self.parameters, self.moments = self.z[:num_parameters], self.z[num_parameters:]
        self.normalization = Normalization(
            columns, self.moments, self.gradient[num_parameters:], returns=settings.normalize_returns
        )
        self._gradient = self.gradient[:num_parameters]
        self._optimizer = make_optimizer(settings, self.parameters, self._gradient)
        self._base_learning_rate = settings.learning_rate
        if settings.learning_rate_scaling == "sqrt":
            self._base_learning_rate *= math.sqrt(total_simulators / REFERENCE_SIMULATORS)
        entropy = np.random.SeedSequence(action_seed).generate_state(1, np.uint64)
        self.generator = torch.Generator().manual_seed(int(entropy[0]))

    def learning_rate(self, progress: float) -> float:
        """Return the learning rate after `progress`, a fraction in [0, 1] of the job's env steps."""
        if self._settings.learning_rate_schedule == "linear":
            return self._base_learning_rate * (1 - progress)
        return self._base_learning_rate

    def entropy_coefficient(self, progress: float) -> float:
        """Return the weight of the entropy bonus after `progress`, a fraction in [0, 1] of the job's env steps."""
        if self._settings.entropy_coefficient_schedule == "linear":
            return self._settings.entropy_coefficient * (1 - progress)
        return self._settings.entropy_coefficient

    def encode(self, observations: np.ndarray, out: torch.Tensor) -> None:
        """Write encoded observations [N, ...] as input of the network."""
        self.policy.trunk.encode(self.normalization.normalized(observations), out)

    def compute_gradient(self, rollout: Rollout, progress: float = 0.0) -> Losses:
        """Write the gradient of the rollout's loss into `gradient`.

            L = sum over valid rows of [-log pi(a) A - c_H H + c_V (R - V)^2] / number of valid rows
            A = R - V, held constant in the first term; R as in `returns`

        Args:
            rollout: What to learn from.
            progress: The fraction in [0, 1] of the job's env steps that are done; c_H may depend on it.

        Returns:
            The three terms.
        """
        settings, policy = self._settings, self.policy
        num_rows = rollout.valid.size
        activations = [layer[:-1].flatten(0, 1) for layer in rollout.activations]
        values = rollout.values
        if rollout.parameters_version != policy.parameters.version:
            # The stored activations are those of other parameters than z.
            memory = rollout.memory.copy(len(values)) if rollout.memory is not None else None
            every = [layer.flatten(0, 1) for layer in rollout.activations]
            values = policy.forward(every, memory)[1].numpy().reshape(values.shape)
        advantages = gae(
            rollout.rewards,
            values,
            rollout.terminated,
            rollout.truncated,
            settings.gamma,
            settings.gae_lambda,
        )
        device = policy.device
        # Rows that only reset a simulator have weight 0; what they hold is arbitrary but finite.
        weights = (rollout.valid / max(rollout.num_valid, 1)).astype(np.float32)
        weight = torch.from_numpy(weights).view(num_rows).to(device)
        advantage = torch.from_numpy(advantages).view(num_rows).to(device)
        target = torch.from_numpy(advantages + values[:-1]).view(num_rows).to(device)
        actions = torch.from_numpy(rollout.actions).flatten(0, 1).to(device)
        masks = torch.from_numpy(rollout.masks).flatten(0, 1).to(device) if rollout.masks is not None else None
        entropy_coefficient = self.entropy_coefficient(progress)
        terms: list[torch.Tensor] = []

        def loss(outputs: torch.Tensor, value: torch.Tensor, free: torch.Tensor) -> torch.Tensor:
            outputs = outputs if masks is None else masked(outputs, masks)
            log_prob, entropy = policy.actions.log_prob_and_entropy(outputs, free, actions)
            policy_loss = -(weight * advantage * log_prob).sum()
            value_loss = (weight * (target - value).square()).sum()
            mean_entropy = (weight * entropy).sum()
            terms.extend((policy_loss, value_loss, mean_entropy))
            weighted_value_loss = settings.value_coefficient * value_loss
            return policy_loss + weighted_value_loss - entropy_coefficient * mean_entropy

        policy.backward(activations, loss, rollout.memory.copy(len(values) - 1) if rollout.memory is not None else None)
        self.normalization.write_gradient()
        return Losses(*(term.item() for term in terms))

    def apply_gradient(self, learning_rate: float, scale: float = 1.0) -> float:
        """Clip `gradient` by its norm and take one optimizer step on `z`.

        The working copy is not refreshed: gossip, which follows, changes `z` again.

        Args:
            learning_rate: Of this update.
            scale: Factor on its step, and on that of the moments.

        Returns:
            The norm of the gradient before the clip.

        Raises:
            UserError: The gradient is not finite.
        """
        norm = float(torch.linalg.vector_norm(torch.from_numpy(self._gradient)))
        if not math.isfinite(norm):
            raise UserError(
                f"the norm of the gradient is {norm}: training has diverged; the learning rate, {learning_rate:g}, may "
                "be too high, rewards too large (learner.reward_scale, learner.normalize_returns), or a network of "
                "your own may give what is not finite"
            )
        most = self._settings.max_grad_norm
        self._optimizer.step(learning_rate * scale, gradient_scale=most / norm if norm > most else 1.0)
        self.normalization.step(scale)
        return norm

    def step_norm(self, learning_rate: float, scale: float = 1.0) -> float:
        """Return the Euclidean norm of the change that the last `apply_gradient` made to `parameters`."""
        return self._optimizer.step_norm(learning_rate * scale)

    def refresh(self) -> None:
        """Compute with `z`; call after every change of it."""
        self.policy.parameters.refresh()
        self.normalization.refresh()

    def state(self) -> dict[str, np.ndarray]:
        """Return copies of what training changes (parameters, optimizer, random numbers), and of constants if any."""
        return {
            "z": self.z.copy(),
            **self._optimizer.state(),
            "generator": self.generator.get_state().numpy().copy(),
            **({"constants": self.constants} if len(self.constants) else {}),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state` returned.

        Raises:
            UserError: The state is that of another network.
        """
        if np.shape(state["z"]) != self.z.shape:
            stored = np.size(state["z"])
            raise UserError(f"the checkpoint holds {stored} parameters; this job's network has {self.z.size}")
        self.z[:] = state["z"]
        self._optimizer.load_state(state)
        self.generator.set_state(torch.from_numpy(np.array(state["generator"], np.uint8)))
        if "constants" in state:
            self.constants = state["constants"]
        self.refresh()

    @property
    def constants(self) -> np.ndarray:
        """Constants of a network of the user's own, as bytes [C] uint8; none of any other."""
        return self.policy.trunk.constants

    @constants.setter
    def constants(self, values: np.ndarray) -> None:
        self.policy.trunk.load_constants(values)


def _columns(encoding: Encoding, environment_id: str) -> np.ndarray:
    """Return which columns of an observation are normalised.

    Raises:
        UserError: There is none.
    """
    if encoding.is_image or not encoding.numbers.any():
        kind = "images" if encoding.is_image else "no numbers but numbers out of sets, bits and images"
        raise UserError(
            f"learner.normalize_observations does nothing: observations of {environment_id} are {kind}, which need none"
        )
    return encoding.numbers


def resolve_device(name: str, local_rank: int = 0) -> str:
    """Name the device to compute on.

    Args:
        name: auto, cpu or cuda; auto takes a GPU where there is one.
        local_rank: Rank among those of this node, which share its GPUs in turn.

    Raises:
        UserError: There is no GPU.
    """
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise UserError("device is 'cuda', but torch finds no GPU here; must be 'cpu' or 'auto'")
    if name == "cpu" or not available:
        return "cpu"
    return f"cuda:{local_rank % torch.cuda.device_count()}"


def resolve_precision(name: str, device: str, *, convolutions: bool) -> str:
    """Name the precision to compute in.

    Args:
        name: auto, float32 or bfloat16; auto takes bfloat16 where it pays: for large convolutions, on a device that
            multiplies it fast.
        device: As `resolve_device` returns it.
        convolutions: Whether the network has any, as `has_large_convolutions` tells.
    """
    if name != "auto":
        return name
    if not convolutions:
        return "float32"
    if device.startswith("cuda"):
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = kernels.multiplies_bfloat16()
    return "bfloat16" if fast else "float32"
