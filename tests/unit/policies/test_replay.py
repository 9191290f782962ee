"""Evaluations replayed: as they were, and after somebody has had a hand in the file."""

import random
import sys

import gymnasium as gym
import h5py
import numpy as np
import pytest

from galampi.cli import run
from galampi.errors import ResultsError, UserError
from galampi.policies import evaluation, replay
from galampi.policies.evaluation import evaluate
from galampi.policies.replay import verify
from galampi.policies.stored import find_policy
from galampi.results.evaluation import load_evaluation

NOOP = 0


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("ALE/Breakout-v5", {"environment.repeat_action_probability": "0.25", "environment.full_action_space": "true"}),
        pytest.param(
            "ALE/Pong-v5",
            {"environment.max_episode_frames": "400", "environment.frame_skip": "3"},
            marks=pytest.mark.slow,
        ),
        ("CartPole-v1", {}),
        ("Pendulum-v1", {}),
    ],
)
def test_what_was_played_is_played_again(store, tmp_path, monkeypatch, name, settings) -> None:
    path = tmp_path / "e.h5"
    for module in (evaluation, replay):
        monkeypatch.setattr(module, "MOST_SIMULATORS", 2)
    played = evaluate(find_policy(store(name, settings=settings)), path, num_episodes=3, max_episode_steps=150)
    # Neither checkpoints nor a network.
    monkeypatch.setattr(evaluation, "Learner", None)
    replayed = verify(path)
    assert [way.actions for way in replayed] == ["sample", "greedy"]
    for way in replayed:
        assert (way.num_episodes, list(way.mismatches)) == (3, [])
        assert way.mean_return == played.returns(way.actions).mean()
    assert path.stat().st_size < 200_000


@pytest.mark.parametrize(("stuck_after", "most", "end"), [(60, None, "stuck"), (None, 90, "cut")])
def test_episodes_that_were_ended(store, constant_policy, tmp_path, monkeypatch, stuck_after, most, end) -> None:
    monkeypatch.setattr(evaluation, "_fire", lambda environment, action_space: None)
    stored = find_policy(store("ALE/Breakout-v5", z=constant_policy("ALE/Breakout-v5", NOOP)))
    limits = {"stuck_after": stuck_after, "max_episode_steps": most}
    evaluate(stored, tmp_path / "e.h5", num_episodes=2, ways=["greedy"], **limits)
    assert set(load_evaluation(tmp_path / "e.h5").episodes["greedy"]["end"]) == {end}
    assert not any(replayed.mismatches for replayed in verify(tmp_path / "e.h5"))


@pytest.fixture
def played(store, tmp_path):
    """An evaluation of CartPole, which ends as soon as actions are worse."""
    evaluate(find_policy(store("CartPole-v1")), tmp_path / "e.h5", num_episodes=4, ways=["sample"], seed=3)
    return tmp_path / "e.h5"


def a_better_return(file) -> None:
    file["episodes/return"][1] += 1


def another_seed(file) -> None:
    file["episodes/seed"][:] = file["episodes/seed"][:] + 1


def other_actions(file) -> None:
    file["taken/sample"][:] = 1 - file["taken/sample"][:]


def ended_before_it_was_bad(file) -> None:
    """All rewards are 1, so that the return of the first steps is known."""
    lengths = file["episodes/length"][:]
    keep = np.ones(lengths.sum(), bool)
    keep[lengths[:2].sum() - 1] = False
    taken = file["taken/sample"][:][keep]
    del file["taken/sample"]
    file["taken/sample"] = taken
    file["episodes/length"][1] -= 1
    file["episodes/return"][1] -= 1


def called_cut(file) -> None:
    ended_before_it_was_bad(file)
    file["episodes/end"][1] = "cut"


@pytest.mark.parametrize("change", [a_better_return, another_seed, other_actions, ended_before_it_was_bad, called_cut])
def test_a_file_that_was_changed(played, capsys, change) -> None:
    assert run(["verify", str(played)]) == 0
    with h5py.File(played, "r+") as file:
        length = int(file["episodes/length"][1])
        change(file)
    capsys.readouterr()
    assert run(["verify", str(played)]) == 1
    told = capsys.readouterr().out
    if change is a_better_return:
        assert told.splitlines() == [
            f"{played}: sample: 3 of 4 episodes went as the file says; mean return "
            f"{load_evaluation(played).episodes['sample']['length'].mean():.2f}",
            f"  episode 2: the file says return {length + 1}, {length} env steps, terminated; "
            f"replayed: return {length}, {length} env steps, terminated",
        ]
    if change in (ended_before_it_was_bad, called_cut):
        assert "3 of 4" in told


class Cents(gym.Env):
    """An episode of rewards that a float32 knows, but no printed decimal."""

    observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.now = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.now += 1
        return np.zeros(2, np.float32), 1e-9, self.now == 5, False, {}


def test_returns_may_be_of_any_size(store, tmp_path, capsys) -> None:
    gym.register("Cents-v0", Cents)
    try:
        path = tmp_path / "e.h5"
        evaluate(find_policy(store("Cents-v0")), path, num_episodes=2, ways=["sample"])
        assert run(["verify", str(path)]) == 0
        assert "mean return 5e-09" in capsys.readouterr().out
        with h5py.File(path, "r+") as file:
            file["episodes/return"][1] *= 1.001
        assert run(["verify", str(path)]) == 1
    finally:
        del gym.registry["Cents-v0"]


def test_other_versions_are_named(played, capsys) -> None:
    with h5py.File(played, "r+") as file:
        a_better_return(file)
        file.attrs["ale_py_version"] = "0.1"
    assert run(["verify", str(played.parent / "e.h5")]) == 1
    assert "  simulated by other versions: ale-py 0.1 then, " in capsys.readouterr().out


def emptied(file) -> None:
    for name in ("return", "length", "end", "seed", "episode"):
        kept = file[f"episodes/{name}"][:0]
        del file[f"episodes/{name}"]
        file[f"episodes/{name}"] = kept
    file["episodes/num_rows"][...] = 0


def shortened(file) -> None:
    kept = file["episodes/length"][:2]
    del file["episodes/length"]
    file["episodes/length"] = kept


def lengths_as_text(file) -> None:
    del file["episodes/length"]
    file["episodes/length"] = ["1"] * 4


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (emptied, "damaged: /episodes has 0 rows"),
        (shortened, "damaged: /episodes/length has 2 of 4 rows"),
        (lengths_as_text, "damaged: /episodes/length holds object; must hold int64"),
        (lambda file: file.attrs.__setitem__("actions", "foo"), "damaged: actions is 'foo'; must be one of"),
        (lambda file: file.attrs.__setitem__("max_episode_steps", "x"), "damaged: max_episode_steps is 'x'; must be"),
        (lambda file: file.attrs.__setitem__("modules", 3), "damaged: modules is 3; must be a list"),
    ],
)
def test_damaged_files_are_told_in_a_line(played, change, told) -> None:
    with h5py.File(played, "r+") as file:
        change(file)
    with pytest.raises(ResultsError, match=f"^{played}: {told}"):
        verify(played)


def test_rows_past_the_committed_ones_do_not_count(played) -> None:
    with h5py.File(played, "r+") as file:
        lengths = file["episodes/length"][:]
        file["episodes/num_rows"][...] = 3
        taken = file["taken/sample"][: lengths[:3].sum()]
        del file["taken/sample"]
        file["taken/sample"] = taken
    (replayed,) = verify(played)
    assert (replayed.num_episodes, list(replayed.mismatches)) == (3, [])


def test_a_bad_file_holds_up_no_other(played, tmp_path, capsys) -> None:
    bad = tmp_path / "bad.h5"
    bad.write_bytes(played.read_bytes()[:500])
    with pytest.raises(UserError, match=r"^1 of 2 files were not replayed$"):
        run(["verify", str(bad), str(played)])
    told = capsys.readouterr().out
    assert f"{bad}: no HDF5 file, or a truncated one" in told
    assert f"{played}: sample: 4 of 4 episodes went as the file says" in told
    with h5py.File(played, "r+") as file:
        a_better_return(file)
    assert run(["verify", str(bad), str(played)]) == 1


def test_an_environment_of_ones_own_may_lie_elsewhere(store, tmp_path, monkeypatch) -> None:
    name = "my_environment_of_elsewhere"
    for folder in ("then", "now"):
        (tmp_path / folder).mkdir()
    made = tmp_path / "then" / f"{name}.py"
    made.write_text(
        "import gymnasium\n"
        "from gymnasium.envs.classic_control import CartPoleEnv\n"
        "gymnasium.register('Elsewhere-v0', CartPoleEnv, max_episode_steps=20)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path / "then"))
    stored = find_policy(store(f"{name}:Elsewhere-v0", settings={"modules_folder": str(tmp_path / "then")}))
    evaluate(stored, tmp_path / "e.h5", num_episodes=1)
    made.rename(tmp_path / "now" / made.name)
    monkeypatch.undo()
    sys.modules.pop(name)
    gym.registry.pop("Elsewhere-v0")
    sys.path[:] = [path for path in sys.path if path != str(tmp_path / "then")]
    with pytest.raises(UserError, match=rf"^{tmp_path}/e\.h5: .*names the module '{name}', which is neither in"):
        verify(tmp_path / "e.h5")
    assert not any(way.mismatches for way in verify(tmp_path / "e.h5", modules_folder=tmp_path / "now"))


def test_files_that_cannot_be_replayed(played, tmp_path) -> None:
    with pytest.raises(ResultsError, match=r"/evaluation\.h5: no such evaluation"):
        run(["verify", str(tmp_path)])
    with h5py.File(played, "r+") as file:
        file["taken/sample"][3] = 7
    with pytest.raises(ResultsError, match=r"e\.h5: damaged: sample actions that CartPole-v1 does not have$"):
        verify(played)
    with h5py.File(played, "r+") as file:
        file["episodes/length"][0] += 1
    with pytest.raises(ResultsError, match=r"e\.h5: damaged: its sample episodes do not fit"):
        verify(played)
    with h5py.File(played, "r+") as file:
        del file["taken"]
    with pytest.raises(ResultsError, match=r"e\.h5: holds no actions, for an older galampi wrote it"):
        verify(played)


class Lucky(gym.Env):
    """Draws what it pays from generators that are everybody's."""

    observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self):
        self.most = np.random.uniform(10, 20)

    def reset(self, *, seed=None, options=None):
        self.now = 0
        return np.full(2, random.random(), np.float32), {}

    def step(self, action):
        self.now += 1
        return np.zeros(2, np.float32), float(np.random.uniform(0, self.most)), self.now == 5, False, {}


@pytest.mark.parametrize("network", ["auto", "nets:Drawn"])
def test_episodes_of_an_environment_that_draws_from_everybodys_generators_are_played_again(
    store, tmp_path, monkeypatch, network
) -> None:
    monkeypatch.setitem(gym.registry, "Lucky-v0", gym.envs.registration.EnvSpec("Lucky-v0", entry_point=Lucky))
    settings = {"network.kind": network, "environment.vectorization": "sync"}
    stored = find_policy(store("Lucky-v0", settings=settings))
    returns = []
    for name in ("first", "again"):
        np.random.seed(None)
        evaluate(stored, tmp_path / f"{name}.h5", num_episodes=3)
        returns.append(load_evaluation(tmp_path / f"{name}.h5").episodes["sample"]["return"].tolist())
    if network == "auto":
        assert returns[0] == returns[1]
    assert len(set(returns[0])) == 3
    assert [replayed.mismatches for replayed in verify(tmp_path / "again.h5")] == [[], []]
