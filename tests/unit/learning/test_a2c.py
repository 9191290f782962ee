"""The learner: its loss against torch's own parts, what it must not see, and that it goes on as it was."""

import dataclasses

import gymnasium as gym
import numpy as np
import pytest
import torch

from galampi.environments import make_simulators
from galampi.errors import UserError
from galampi.job import parse_job
from galampi.learning import Learner, Rollout, RolloutCollector, kernels, resolve_device, resolve_precision

PIXELS = gym.spaces.Box(0, 255, (4, 84, 84), np.uint8)
VECTOR = gym.spaces.Box(-1, 1, (3,), np.float32)
FOUR_ACTIONS = gym.spaces.Discrete(4)
CONTINUOUS = gym.spaces.Box(-2, 2, (2,), np.float32)


def make_job(**settings):
    return parse_job("", "test", {key.replace("__", "."): str(value) for key, value in settings.items()})


def make_learner(
    observation_space=VECTOR,
    action_space=FOUR_ACTIONS,
    *,
    precision="float32",
    total_simulators=16,
    action_seed=7,
    **settings,
):
    return Learner(
        make_job(**settings),
        observation_space,
        action_space,
        total_simulators=total_simulators,
        seed=1,
        action_seed=action_seed,
        device="cpu",
        precision=precision,
    )


def make_rollout(learner, seed, num_steps=5, num_envs=4, action_space=FOUR_ACTIONS, pixels=False):
    """Random content, with ends of both kinds and the rows that follow them."""
    rng = np.random.default_rng(seed)
    activations = learner.policy.trunk.new_activations(num_steps + 1, num_envs)
    for row in activations[0]:
        shape = (num_envs, 4, 84, 84) if pixels else (num_envs, 3)
        observations = rng.integers(0, 256, shape, np.uint8) if pixels else rng.normal(size=shape)
        learner.policy.trunk.encode(observations, row)
    shape = (num_steps, num_envs)
    terminated, truncated, valid = np.zeros(shape, bool), np.zeros(shape, bool), np.ones(shape, bool)
    terminated[1, 0] = truncated[2, 1] = terminated[4, 2] = truncated[4, 3] = True
    valid[2, 0] = valid[3, 1] = valid[0, 2] = False
    discrete = isinstance(action_space, gym.spaces.Discrete)
    return Rollout(
        activations,
        rng.integers(0, 4, shape) if discrete else rng.normal(size=(*shape, 2)).astype(np.float32),
        rng.normal(size=shape).astype(np.float32),
        np.zeros((num_steps + 1, num_envs), np.float32),
        terminated,
        truncated,
        valid,
        parameters_version=-1,  # the learner computes activations and values itself
    )


def concatenated(rollouts):
    """One rollout of all simulators."""
    joined = {
        field.name: np.concatenate([getattr(r, field.name) for r in rollouts], axis=1)
        for field in dataclasses.fields(Rollout)
        if field.name not in ("activations", "parameters_version", "masks", "memory")
    }
    layers = zip(*(r.activations for r in rollouts), strict=True)
    return Rollout([torch.cat(layer, dim=1) for layer in layers], parameters_version=-1, **joined)


def gradient_of(learner, rollout):
    losses = learner.compute_gradient(rollout)
    return learner.gradient.copy(), losses


def close(found, expected):
    """Whether two sums of the same terms differ by roundings only, which are relative to the terms, not to a sum."""
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("action_space", [FOUR_ACTIONS, CONTINUOUS])
def test_gradient_is_that_of_the_papers_loss(action_space):
    """Row by row, with torch's own layers, distributions and autograd."""
    learner = make_learner(action_space=action_space, learner__entropy_coefficient=0.3)
    rollout = make_rollout(learner, seed=0, action_space=action_space)
    gradient, losses = gradient_of(learner, rollout)

    blocks = [block.clone().requires_grad_() for block in learner.policy.parameters.working]
    first, first_bias, second, second_bias, policy, policy_bias, critic, critic_bias, log_std = blocks
    features = torch.tanh(torch.tanh(rollout.activations[0] @ first.T + first_bias) @ second.T + second_bias)
    outputs, values = features @ policy.T + policy_bias, (features @ critic.T + critic_bias).squeeze(-1)
    policy_terms, value_terms, entropies = [], [], []
    for t, b in zip(*np.nonzero(rollout.valid), strict=True):
        target, discount = 0.0, 1.0
        for k in range(t, 5):
            target += discount * float(rollout.rewards[k, b])
            discount *= 0.99
            if rollout.terminated[k, b]:
                break
            if rollout.truncated[k, b] or k == 4:
                target += discount * values[k + 1, b].item()
                break
        action = torch.as_tensor(rollout.actions[t, b])
        if action_space is FOUR_ACTIONS:
            distribution = torch.distributions.Categorical(logits=outputs[t, b])
        else:
            normal = torch.distributions.Normal(outputs[t, b], log_std.exp())
            distribution = torch.distributions.Independent(normal, 1)
        policy_terms.append(-distribution.log_prob(action) * (target - values[t, b].item()))
        value_terms.append((target - values[t, b]) ** 2)
        entropies.append(distribution.entropy())
    means = [torch.stack(terms).mean() for terms in (policy_terms, value_terms, entropies)]
    expected = torch.autograd.grad(means[0] + 0.5 * means[1] - 0.3 * means[2], blocks, materialize_grads=True)
    close(gradient, torch.cat([block.flatten() for block in expected]).detach().numpy())
    close(dataclasses.astuple(losses), [m.item() for m in means])


@pytest.mark.parametrize(("num_envs", "precision", "tolerance"), [(4, "float32", 1e-4), (4, "bfloat16", 0.02)])
def test_activations_of_acting_are_those_of_training(num_envs, precision, tolerance):
    """The stored pass, in T batches of B, equals a fresh one over the whole batch."""
    job = make_job(environment__id="ALE/Breakout-v5", environment__num_envs=num_envs)
    simulators = make_simulators(job.environment, seed=1, num_threads=1, life_ends_return=True)
    learner = make_learner(PIXELS, FOUR_ACTIONS, precision=precision, environment__num_envs=num_envs)
    collector = RolloutCollector(job, simulators, learner)
    collector.collect()
    rollout, _ = collector.collect()
    stored, _ = gradient_of(learner, rollout)
    fresh, _ = gradient_of(learner, dataclasses.replace(rollout, parameters_version=-1))
    assert np.linalg.norm(stored - fresh) <= tolerance * np.linalg.norm(fresh)
    # What is not the same: a pass of other parameters.
    stale = dataclasses.replace(rollout)
    learner.z += 0.01
    learner.refresh()
    changed, _ = gradient_of(learner, stale)
    expected, _ = gradient_of(learner, dataclasses.replace(rollout, parameters_version=-1))
    np.testing.assert_array_equal(changed, expected)


@pytest.mark.parametrize("action_space", [FOUR_ACTIONS, CONTINUOUS])
def test_rows_that_reset_have_no_part_in_the_gradient(action_space):
    learner = make_learner(action_space=action_space)
    rollout = make_rollout(learner, seed=0, action_space=action_space)
    expected, losses = gradient_of(learner, rollout)
    changed = make_rollout(learner, seed=0, action_space=action_space)
    others = make_rollout(learner, seed=1, action_space=action_space)
    resets = ~rollout.valid
    changed.rewards[resets] = 1e3
    changed.actions[resets] = others.actions[resets]
    # Row 3 of simulator 1 shows where its episode was cut, which is used; the others' inputs are not.
    for t, b in ((2, 0), (0, 2)):
        changed.activations[0][t, b] = 5.0
    gradient, changed_losses = gradient_of(learner, changed)
    close(gradient, expected)
    close(dataclasses.astuple(changed_losses), dataclasses.astuple(losses))


def test_the_number_of_valid_rows_divides():
    learner = make_learner()
    rollout = make_rollout(learner, seed=0)
    expected, _ = gradient_of(learner, rollout)
    nothing = make_rollout(learner, seed=1)
    nothing.valid[:] = False
    gradient, _ = gradient_of(learner, concatenated([rollout, nothing]))
    close(gradient, expected)


def test_a_rollout_of_resets_alone_has_no_gradient():
    learner = make_learner()
    nothing = make_rollout(learner, seed=1)
    nothing.valid[:] = False
    gradient, losses = gradient_of(learner, nothing)
    assert not gradient.any() and dataclasses.astuple(losses) == (0, 0, 0)


def test_gradient_of_a_joint_batch_is_the_mean_of_gradients():
    """What an allreduce of gradients relies on."""
    learner = make_learner()
    rollouts = [make_rollout(learner, seed) for seed in range(3)]
    gradients = [gradient_of(learner, rollout)[0] for rollout in rollouts]
    joint, _ = gradient_of(learner, concatenated(rollouts))
    close(joint, np.mean(gradients, axis=0))


def test_bfloat16_gradient_equals_float32_to_rounding():
    gradients = []
    for precision in ("float32", "bfloat16"):
        learner = make_learner(PIXELS, precision=precision)
        gradient, _ = gradient_of(learner, make_rollout(learner, seed=0, num_envs=16, pixels=True))
        gradients.append(gradient)
        assert learner.z.dtype == learner.gradient.dtype == np.float32
    # Noise as images makes sums of many terms that cancel, the worst case for 8 bits.
    assert np.linalg.norm(gradients[1] - gradients[0]) < 0.1 * np.linalg.norm(gradients[0])


def test_clip_by_norm():
    learner = make_learner(learner__max_grad_norm=0.5)
    learner.gradient[:] = 0
    learner.gradient[:2] = [3, 4]
    assert learner.apply_gradient(0.1) == pytest.approx(5)
    np.testing.assert_allclose(learner.gradient[:2], [0.3, 0.4], rtol=1e-6)
    learner.gradient[:2] = [0.1, 0.2]
    learner.apply_gradient(0.1)
    np.testing.assert_array_equal(learner.gradient[:2], np.array([0.1, 0.2], np.float32))


def test_a_gradient_that_is_not_finite_stops_the_learner():
    learner = make_learner()
    z = learner.z.copy()
    learner.gradient[3] = np.nan
    with pytest.raises(UserError, match="gradient is nan: training has diverged"):
        learner.apply_gradient(0.1)
    np.testing.assert_array_equal(learner.z, z)


@pytest.mark.parametrize(
    ("scaling", "schedule", "progress", "expected"),
    [
        ("sqrt", "constant", 0.5, 7e-4 * 2),
        ("none", "constant", 0.5, 7e-4),
        ("sqrt", "linear", 0.25, 7e-4 * 2 * 0.75),
        ("none", "linear", 1.0, 0.0),
    ],
)
def test_learning_rate_rules(scaling, schedule, progress, expected):
    learner = make_learner(
        total_simulators=64, learner__learning_rate_scaling=scaling, learner__learning_rate_schedule=schedule
    )
    assert learner.learning_rate(progress) == pytest.approx(expected)


def train(learner, collector, num_updates):
    for _ in range(num_updates):
        rollout, _ = collector.collect()
        learner.compute_gradient(rollout)
        learner.apply_gradient(1e-3)
        learner.refresh()


def start(environment_id, precision="float32", action_seed=7, **settings):
    job = make_job(environment__id=environment_id, environment__num_envs=2, **settings)
    simulators = make_simulators(job.environment, seed=1, num_threads=1, life_ends_return="auto")
    learner = make_learner(
        simulators.single_observation_space,
        simulators.single_action_space,
        precision=precision,
        action_seed=action_seed,
        environment__id=environment_id,
        **settings,
    )
    return learner, RolloutCollector(job, simulators, learner)


@pytest.mark.parametrize(
    ("environment_id", "precision", "num_updates"),
    [("ALE/Breakout-v5", "bfloat16", 8), ("CartPole-v1", "float32", 50), ("Pendulum-v1", "float32", 50)],
)
def test_the_same_seed_gives_the_same_bytes(environment_id, precision, num_updates):
    results = []
    for action_seed in ((1, 0), (1, 0), (1, 1)):
        learner, collector = start(environment_id, precision, action_seed)
        initial = learner.z.tobytes()
        train(learner, collector, num_updates)
        results.append((initial, learner.z.tobytes()))
    assert results[0] == results[1]
    assert results[0][0] == results[2][0] and results[0][1] != results[2][1]


@pytest.mark.parametrize(("schedule", "expected"), [("constant", 0.3), ("linear", 0.3 * 0.75)])
def test_the_weight_of_the_entropy_may_fall(schedule, expected):
    settings = {"learner__entropy_coefficient": 0.3, "learner__entropy_coefficient_schedule": schedule}
    learner, constant = make_learner(**settings), make_learner(learner__entropy_coefficient=expected)
    learner.compute_gradient(make_rollout(learner, seed=0), progress=0.25)
    constant.compute_gradient(make_rollout(constant, seed=0), progress=0.25)
    close(learner.gradient, constant.gradient)
    if schedule == "linear":
        assert learner.entropy_coefficient(1.0) == 0


@pytest.mark.parametrize("optimizer", ["rmsprop", "rmsprop-tf", "adam"])
def test_a_loaded_state_goes_on_as_the_saved_one(optimizer):
    saved = make_learner(learner__optimizer=optimizer)
    loaded = make_learner(learner__optimizer=optimizer, action_seed=99)
    saved.policy.sample(torch.zeros(3, 4), saved.generator)
    for seed in range(3):
        saved.compute_gradient(make_rollout(saved, seed))
        saved.apply_gradient(1e-2)
        saved.refresh()
    loaded.load_state(saved.state())
    ends = []
    for learner in (saved, loaded):
        for seed in range(3, 6):
            learner.compute_gradient(make_rollout(learner, seed))
            learner.apply_gradient(1e-2)
            learner.refresh()
        drawn = learner.policy.sample(torch.zeros(8, 4), learner.generator)
        ends.append((learner.z.tobytes(), learner.state()["square_avg"].tobytes(), drawn.tobytes()))
    assert ends[0] == ends[1]


def test_a_state_is_a_copy():
    learner = make_learner()
    state = learner.state()
    before = state["z"].copy()
    learner.z += 1
    np.testing.assert_array_equal(state["z"], before)


def test_the_state_of_another_network_is_refused():
    small = make_learner(network__hidden_sizes="[4]")
    with pytest.raises(UserError, match=r"the checkpoint holds \d+ parameters; this job's network has \d+"):
        make_learner().load_state(small.state())


def test_no_gpu_is_a_one_line_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == resolve_device("cpu") == "cpu"
    with pytest.raises(UserError, match="device is 'cuda'"):
        resolve_device("cuda")


def test_gpus_are_shared_in_turn(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [resolve_device("auto", local_rank=i) for i in range(3)] == ["cuda:0", "cuda:1", "cuda:0"]


def test_precision_follows_the_processor(monkeypatch):
    for fast, expected in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(kernels, "multiplies_bfloat16", lambda fast=fast: fast)
        assert resolve_precision("auto", "cpu", convolutions=True) == expected
        assert resolve_precision("float32", "cpu", convolutions=True) == "float32"
        # Where there are no convolutions it gains nothing.
        assert resolve_precision("auto", "cpu", convolutions=False) == "float32"
        assert resolve_precision("bfloat16", "cpu", convolutions=False) == "bfloat16"


def test_cartpole_is_learnt():
    job = make_job(
        environment__id="CartPole-v1",
        learner__rollout_length=32,
        learner__gae_lambda=0.95,
        learner__learning_rate=2e-3,
        learner__entropy_coefficient=0,
        learner__reward_scale=0.02,
    )
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
    collector = RolloutCollector(job, simulators, learner)
    returns = []
    for _ in range(140):
        rollout, episodes = collector.collect()
        returns += [episode.episodic_return for episode in episodes]
        learner.compute_gradient(rollout)
        learner.apply_gradient(learner.learning_rate(0))
        learner.refresh()
    assert np.mean(returns[:50]) < 40
    assert np.mean(returns[-50:]) > 150
