"""The exported policy gives, without galampi, what galampi's own network gives."""

import json
import re
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

from galampi.environments import make_simulators
from galampi.environments.spaces import Encoding
from galampi.errors import UserError
from galampi.policies.evaluation import make_learner
from galampi.policies.export import export_onnx, export_policy
from galampi.policies.stored import find_policy

DOCUMENTED = Path(__file__).parents[3] / "docs/evaluation.md"
JOBS = {
    "cnn": ("ALE/Pong-v5", {}),
    "cnn-small": ("ALE/Breakout-v5", {"network.kind": "cnn-small"}),
    "mlp": ("CartPole-v1", {}),
    "continuous": ("Pendulum-v1", {"network.hidden_sizes": "[16, 8, 8]"}),
    "gru": ("CartPole-v1", {"network.recurrent": "gru", "network.recurrent_size": "7"}),
    "lstm": ("ALE/Pong-v5", {"network.recurrent": "lstm", "network.recurrent_size": "9"}),
    "own": ("CartPole-v1", {"network.kind": "nets:Trunk"}),
    "normalized": ("CartPole-v1", {"learner.normalize_observations": "true", "learner.normalize_returns": "true"}),
    "linear": ("CartPole-v1", {"network.hidden_sizes": "[]"}),
}


SLOW = {"cnn-small", "mlp", "gru", "linear"}


@pytest.fixture(params=[pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in JOBS])
def played(request, store):
    """Return a stored policy, observations, hidden states and what galampi's network makes of them."""
    environment_id, settings = JOBS[request.param]
    stored = find_policy(store(environment_id, settings=settings))
    environment = stored.job.environment.model_copy(update={"num_envs": 3})
    simulators = make_simulators(environment, seed=1, num_threads=1, life_ends_return=False)
    learner = make_learner(stored, simulators, 0)
    observations = simulators.reset()
    policy = learner.policy
    memory = policy.recurrence.new_memory(3) if policy.recurrence is not None else None
    for _ in range(20):
        state = {"state": memory.state.numpy().copy()} if memory is not None else {}
        activations = policy.trunk.new_activations(3)
        learner.encode(observations, activations[0])
        outputs, values = policy.forward(activations, memory)
        seen = observations.copy()
        observations = simulators.step(policy.sample(outputs, learner.generator)).observations
    simulators.close()
    return stored, seen, state, outputs.numpy(), values.numpy()


def close(found, expected) -> None:
    """Compare sums of many terms of both signs, in units of the greatest: roundings are relative to the terms."""
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_the_documented_lines_rebuild_the_policy(played, tmp_path) -> None:
    pytest.importorskip("safetensors")
    stored, observations, state, outputs, values = played
    if ":" in stored.job.network.kind:
        pytest.skip("its class is the user's")
    export_policy(stored, tmp_path / "policy.safetensors")
    np.savez(tmp_path / "seen.npz", observations=observations, **state)
    (lines,) = [block for block in re.findall(r"```python\n(.*?)```", DOCUMENTED.read_text(), re.S) if "act(" in block]
    program = f"""
{lines}
import sys
import numpy
with torch.no_grad():
    seen = {{name: torch.from_numpy(array) for name, array in numpy.load("seen.npz").items()}}
    outputs, values, *state = act(**seen)
numpy.savez("answer.npz", outputs=outputs.numpy(), values=values.numpy())
assert "galampi" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)
    with np.load(tmp_path / "answer.npz") as answer:
        close(answer["outputs"], outputs)
        close(answer["values"][:, 0], values)
    # Rows differ, so the test would see rows or pixels that are mixed up.
    assert np.ptp(outputs, axis=0).max() > 1e-3


def test_the_onnx_graph_computes_the_same(played, tmp_path) -> None:
    reference = pytest.importorskip("onnx.reference")
    pytest.importorskip("onnxscript")
    import onnx

    stored, observations, state, outputs, values = played
    export_onnx(stored, tmp_path / "policy.onnx")
    model = onnx.load(tmp_path / "policy.onnx")
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "rows"
    about = json.loads({entry.key: entry.value for entry in model.metadata_props}["galampi"])
    inputs = observations[:3].astype(np.float32) * np.float32(about["input_scale"])
    found = reference.ReferenceEvaluator(model).run(["outputs", "value"], {"observations": inputs, **state})
    close(found[0], outputs)
    close(found[1][:, 0], values)


def test_the_metadata_say_how_to_act(store, tmp_path) -> None:
    safetensors = pytest.importorskip("safetensors")
    stored = find_policy(store("Pendulum-v1"))
    export_policy(stored, tmp_path / "p.safetensors")
    with safetensors.safe_open(tmp_path / "p.safetensors", "np") as file:
        about = json.loads(file.metadata()["galampi"])
        log_std = file.get_tensor("log_std")
    assert log_std.tolist() == stored.z[-1:].tolist()
    assert (about["actions"], about["low"], about["high"]) == ("gaussian", [-2.0], [2.0])
    assert (about["middle"], about["half_range"]) == ([0.0], [2.0])
    assert about["whole_numbers"] is False
    assert about["environment"]["id"] == "Pendulum-v1"
    assert (about["policy"], about["env_steps"]) == ("mean", 1000)


@pytest.mark.parametrize(("environment_id", "is_masked"), [("Taxi-v4", True), ("CartPole-v1", False)])
def test_the_metadata_say_whether_there_are_masks(store, tmp_path, environment_id, is_masked) -> None:
    safetensors = pytest.importorskip("safetensors")
    export_policy(find_policy(store(environment_id)), tmp_path / "p.safetensors")
    with safetensors.safe_open(tmp_path / "p.safetensors", "np") as file:
        assert json.loads(file.metadata()["galampi"])["masked"] is is_masked


def test_a_network_that_is_no_graph_is_told_in_one_line(store, tmp_path, capfd) -> None:
    pytest.importorskip("onnxscript")
    stored = find_policy(store("CartPole-v1", settings={"network.kind": "nets:Branches"}))
    with pytest.raises(
        UserError, match=r"--onnx: 'nets:Branches' cannot be made a graph: .*; --policy writes it"
    ) as error:
        export_onnx(stored, tmp_path / "p.onnx")
    assert "\n" not in str(error.value) and len(str(error.value)) < 500
    assert not (tmp_path / "p.onnx").exists()
    assert len("".join(capfd.readouterr()).splitlines()) <= 1


class Counts(gym.Env):
    """Whole numbers with bounds, by themselves or beside others."""

    action_space = gym.spaces.Discrete(2)

    def __init__(self, parts=False):
        counts = gym.spaces.Box(np.array([-10, 0, 5]), np.array([10, 3, 5]), (3,), np.int64)
        image = gym.spaces.Box(0, 255, (8, 8, 3), np.uint8)
        self.observation_space = gym.spaces.Dict(counts=counts, eye=image) if parts else counts

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), 0.0, False, False, {}


def test_the_metadata_say_how_numbers_become_inputs(store, tmp_path) -> None:
    safetensors = pytest.importorskip("safetensors")
    gym.register("Counts-v0", Counts)
    try:
        found = []
        for number, kwargs in enumerate(("{}", "{parts = true}")):
            settings = {"environment.kwargs": kwargs, "network.kind": "auto"}
            export_policy(find_policy(store("Counts-v0", settings=settings)), tmp_path / f"{number}.safetensors")
            with safetensors.safe_open(tmp_path / f"{number}.safetensors", "np") as file:
                found.append(json.loads(file.metadata()["galampi"]))
        alone, several = found
        assert (alone["input_low"], alone["input_range"]) == ([-10.0, 0.0, 5.0], [20.0, 3.0, 1.0])
        assert several["parts"] == [
            ["counts", "vector", [3], 0, [-10.0, 0.0, 5.0], [20.0, 3.0, 1.0]],
            ["eye", "image", [3, 8, 8], 3, 0.0, 255.0],
        ]
        # As the simulators of training make it.
        space = Counts(parts=True).observation_space
        observation = space.sample()
        row = Encoding(space)(observation)
        for (name, kind, shape, start, *bounds), value in zip(several["parts"], observation.values(), strict=True):
            low, extent = map(np.array, bounds)
            expected = ((np.moveaxis(value, -1, 0) if kind == "image" else value) - low) / extent
            np.testing.assert_allclose(row[start : start + np.prod(shape)], expected.ravel(), rtol=1e-6, err_msg=name)
    finally:
        del gym.registry["Counts-v0"]


@pytest.mark.parametrize("place", ["nowhere/policy", "."])
def test_a_place_that_cannot_be_written(store, tmp_path, place) -> None:
    pytest.importorskip("safetensors")
    pytest.importorskip("onnxscript")
    stored = find_policy(store("CartPole-v1"))
    for export in (export_policy, export_onnx):
        with pytest.raises(UserError, match=r"cannot be written: ") as raised:
            export(stored, tmp_path / place)
        assert "\n" not in str(raised.value)


def test_a_missing_package_is_named(store, tmp_path, monkeypatch) -> None:
    stored = find_policy(store("CartPole-v1"))
    for module, export in (("safetensors.torch", export_policy), ("onnxscript", export_onnx)):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(UserError, match=r"needs (safetensors|onnxscript): pip install 'galampi\[export\]'"):
            export(stored, tmp_path / "file")
