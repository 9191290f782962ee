"""The memory: its gradient through time against autograd, what it forgets, and what no policy can do without."""

from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch

from galampi.environments import make_simulators
from galampi.environments.spaces import Encoding
from galampi.job import Network, import_modules, parse_job
from galampi.learning import Learner, RolloutCollector
from galampi.learning.plain import PlainNetwork
from galampi.learning.policy import Policy
from galampi.learning.recurrence import Memory

JOBS = Path(__file__).parents[3] / "jobs"
BYTES = gym.spaces.Box(0, 255, (3,), np.uint8)
KINDS = ["gru", "lstm"]


def loss_of(outputs, values, free):
    rows = torch.arange(1.0, len(values) + 1)
    return (rows * outputs.square().sum(-1)).sum() + (rows * (values - 1).square()).sum()


def make_policy(kind, hidden_sizes):
    policy = Policy(
        Network(recurrent=kind, recurrent_size=6, hidden_sizes=hidden_sizes),
        Encoding(BYTES),
        gym.spaces.Discrete(2),
        seed=1,
        device=torch.device("cpu"),
        precision=torch.float32,
    )
    # Biases begin with 0, and hide what is added where.
    policy.parameters.z += 0.1 * np.random.default_rng(0).normal(size=policy.parameters.z.size).astype(np.float32)
    policy.parameters.refresh()
    return policy


def stepped(kind, x, state, w_x, w_h, b_x, b_h):
    """One step, in plain words."""
    size = w_h.shape[1]
    from_x, from_h = x @ w_x.T + b_x, state[:, :size] @ w_h.T + b_h
    if kind == "gru":
        r, u = (torch.sigmoid(from_x[:, k * size :][:, :size] + from_h[:, k * size :][:, :size]) for k in (0, 1))
        n = torch.tanh(from_x[:, 2 * size :] + r * from_h[:, 2 * size :])
        return (1 - u) * n + u * state
    i, f, g, o = (from_x + from_h).chunk(4, 1)
    c = torch.sigmoid(f) * state[:, size:] + torch.sigmoid(i) * torch.tanh(g)
    return torch.cat([torch.sigmoid(o) * torch.tanh(c), c], 1)


@pytest.mark.parametrize("hidden_sizes", [(5,), ()])
@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_through_time_is_that_of_the_unrolled_sequence(kind, hidden_sizes):
    policy = make_policy(kind, hidden_sizes)
    num_steps, num_envs = 7, 4
    rng = np.random.default_rng(0)
    observations = rng.integers(0, 256, (num_steps * num_envs, 3), np.uint8)
    keeps = torch.from_numpy(rng.random((num_steps, num_envs)) > 0.3)
    start = torch.randn(num_envs, policy.recurrence.state_size, generator=torch.Generator().manual_seed(0))
    activations = policy.trunk.new_activations(num_steps * num_envs)
    policy.trunk.encode(observations, activations[0])
    memory = Memory(start.clone(), keeps)
    outputs, values = policy.forward(activations, memory)
    policy.backward(activations, loss_of, Memory(start, keeps))

    blocks = [block.requires_grad_() for block in policy.parameters.blocks()]
    *trunk, w_x, w_h, b_x, b_h, w_p, b_p, w_v, b_v, _ = blocks
    x = torch.from_numpy(observations) / 255
    if trunk:
        x = torch.tanh(x @ trunk[0].T + trunk[1])
    state, hidden = start, []
    for t in range(num_steps):
        state = torch.stack([row if keep else torch.zeros_like(row) for row, keep in zip(state, keeps[t], strict=True)])
        state = stepped(kind, x[t * num_envs : (t + 1) * num_envs], state, w_x, w_h, b_x, b_h)
        hidden.append(state[:, :6])
    h = torch.cat(hidden)
    expected = h @ w_p.T + b_p, (h @ w_v.T + b_v).squeeze(-1)
    torch.testing.assert_close(outputs, expected[0].detach())
    torch.testing.assert_close(values, expected[1].detach())
    torch.testing.assert_close(memory.state, state.detach())
    wanted = torch.autograd.grad(loss_of(*expected, None), blocks, allow_unused=True, materialize_grads=True)
    found = torch.from_numpy(policy.parameters.gradient)
    wanted = torch.cat([gradient.flatten() for gradient in wanted])
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5 * wanted.abs().max().item())


@pytest.mark.parametrize("kind", KINDS)
def test_the_plain_network_remembers_alike(kind):
    policy = make_policy(kind, (5,))
    observations = np.random.default_rng(0).integers(0, 256, (4, 3), np.uint8)
    activations = policy.trunk.new_activations(4)
    policy.trunk.encode(observations, activations[0])
    memory = policy.recurrence.new_memory(4)
    plain, state = PlainNetwork(policy), memory.state
    for _ in range(3):
        outputs, values = policy.forward(activations, memory)
        found = plain(torch.from_numpy(observations) / 255, state)
        state = found[2]
    torch.testing.assert_close(found[0].detach(), outputs)
    torch.testing.assert_close(found[1].detach().squeeze(-1), values)
    torch.testing.assert_close(state.detach(), memory.state)


def start(job, **settings):
    import_modules(job)
    simulators = make_simulators(job.environment, seed=1, num_threads=1, life_ends_return="auto")
    learner = Learner(
        job,
        simulators.single_observation_space,
        simulators.single_action_space,
        total_simulators=16,
        seed=1,
        action_seed=1,
        device="cpu",
        precision="float32",
    )
    return learner, RolloutCollector(job, simulators, learner)


@pytest.mark.parametrize("environment_id", ["CartPole-v1", "ALE/Breakout-v5"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_rollout_remembers_what_came_before_it_and_no_other_episode(kind, environment_id):
    settings = {
        "environment.id": environment_id,
        "environment.num_envs": "3",
        "learner.rollout_length": "16",
        "network.recurrent": kind,
        "network.recurrent_size": "8",
    }
    learner, collector = start(parse_job("", "test", settings))
    policy = learner.policy
    state = torch.zeros(3, policy.recurrence.state_size)
    begins_anew = np.zeros(3, bool)
    last_values = None
    num_begun = 0
    for _ in range(8):
        rollout, _ = collector.collect()
        if last_values is not None:
            # The same observation, remembered alike.
            np.testing.assert_allclose(rollout.values[0], last_values, rtol=0, atol=1e-5)
        for t in range(16):
            state[torch.from_numpy(begins_anew)] = 0
            memory = Memory(state, torch.ones(1, 3, dtype=torch.bool))
            _, values = policy.forward([layer[t] for layer in rollout.activations], memory)
            np.testing.assert_allclose(values, rollout.values[t], rtol=0, atol=1e-5)
            state = memory.state
            # After the row that only resets a simulator, and after a lost life.
            begins_anew = ~rollout.valid[t] | rollout.terminated[t]
            num_begun += begins_anew.sum()
        last_values = rollout.values[-1].copy()
        # A fresh pass over the whole rollout, from its start, is that of acting.
        fresh = policy.forward([layer.flatten(0, 1) for layer in rollout.activations], rollout.memory.copy(17))[1]
        np.testing.assert_allclose(fresh.view(17, 3), rollout.values, rtol=0, atol=1e-5)
        learner.compute_gradient(rollout)
    assert num_begun > 3 or environment_id != "CartPole-v1"


def train(job, num_updates):
    learner, collector = start(job)
    returns = []
    for _ in range(num_updates):
        rollout, episodes = collector.collect()
        returns += [episode.episodic_return for episode in episodes]
        learner.compute_gradient(rollout)
        learner.apply_gradient(learner.learning_rate(0))
        learner.refresh()
    return np.mean(returns[-300:])


@pytest.mark.parametrize(("kind", "learns"), [("gru", True), ("lstm", True), ("none", False)])
def test_recall_is_learnt_by_memory_alone(kind, learns, monkeypatch):
    monkeypatch.syspath_prepend(JOBS)
    job = parse_job((JOBS / "recall.toml").read_text(), "test", {"network.recurrent": kind})
    mean = train(job, 250)
    assert mean > 0.9 if learns else mean < 0.65
