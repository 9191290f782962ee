"""Films of episodes: every picture that was played, and one line where there can be none."""

import gymnasium as gym
import numpy as np
import pytest

from galampi.errors import UserError
from galampi.policies.evaluation import evaluate
from galampi.policies.stored import find_policy
from galampi.results.evaluation import load_evaluation

FIRE = 1


def test_the_film_shows_every_step_of_the_first_episode(store, tmp_path) -> None:
    av = pytest.importorskip("av")
    stored = find_policy(store("ALE/Breakout-v5", settings={"environment.repeat_action_probability": "0.25"}))
    film = tmp_path / "film.mp4"
    played = evaluate(stored, tmp_path / "e.h5", num_episodes=2, video=film, stuck_after=150)
    first, *_ = played.episodes[played.better]
    # Rewards are what tells a film of another game.
    assert first.episodic_return > 0
    with av.open(str(film)) as container:
        stream = container.streams.video[0]
        assert stream.average_rate == 15
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    assert len(pictures) == first.length + 1
    assert pictures[0].shape == (420, 320, 3)
    # The bricks' rows are of six colours, from red to blue.
    red, blue = pictures[0][118, 160].astype(int), pictures[0][182, 160].astype(int)
    assert red[0] > red[2] + 50
    assert blue[2] > blue[0] + 50


@pytest.mark.slow
def test_the_film_is_of_the_way_to_play_that_scores_more(store, constant_policy, tmp_path) -> None:
    """Rewards are the game's own there too: an alien of Space Invaders is worth 5 to 30."""
    av = pytest.importorskip("av")
    shoots = find_policy(store("ALE/SpaceInvaders-v5", z=constant_policy("ALE/SpaceInvaders-v5", FIRE)))
    played = evaluate(shoots, tmp_path / "e.h5", num_episodes=1, video=tmp_path / "film.mp4")
    with av.open(str(tmp_path / "film.mp4")) as container:
        num_pictures = sum(1 for _ in container.decode(video=0))
    scores = {way: float(played.returns(way).mean()) for way in played.episodes}
    assert scores["sample"] != scores["greedy"]
    assert scores[played.better] == max(scores.values())
    assert num_pictures == played.episodes[played.better][0].length + 1


class OwnRandomness(gym.Env):
    """An environment that is no function of seed and actions: its rewards, or its ends, are its own."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012
    observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)
    rng = np.random.default_rng(0)
    random = "rewards"
    num_steps = 0

    def __init__(self, render_mode=None):
        self.render_mode = render_mode
        self.steps = 0

    def reset(self, *, seed=None, options=None):
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.steps += 1
        OwnRandomness.num_steps += 1
        if self.random == "ends":
            return np.zeros(2, np.float32), 1.0, OwnRandomness.num_steps == 20, False, {}
        return np.zeros(2, np.float32), float(self.rng.random()), self.steps == 20, False, {}

    def render(self):
        return np.zeros((31, 33, 3), np.uint8)


def test_what_cannot_be_filmed_is_told(store, tmp_path, monkeypatch) -> None:
    pytest.importorskip("av")
    gym.register("OwnRandomness-v0", OwnRandomness)
    evaluate(find_policy(store("CartPole-v1")), tmp_path / "e.h5", num_episodes=1, video=tmp_path / "film.mp4")
    before = (tmp_path / "film.mp4").read_bytes()
    try:
        stored = find_policy(store("OwnRandomness-v0"))
        with pytest.raises(UserError, match="environments with randomness of their own cannot be filmed"):
            evaluate(stored, tmp_path / "e.h5", video=tmp_path / "film.mp4")
        # Of what an .ogg cannot hold is told at its end alone.
        for name in ("film.foo", "film.webm", "film", "film.ogg"):
            with pytest.raises(UserError, match=rf"{name}; it(s name must end in| cannot be written)"):
                evaluate(stored, tmp_path / "other.h5", video=tmp_path / name)
            assert not (tmp_path / name).exists() and not (tmp_path / "other.h5").exists()
        # The twentieth is the last of the episode; the film takes the steps after it.
        monkeypatch.setattr(OwnRandomness, "random", "ends")
        monkeypatch.setattr(OwnRandomness, "num_steps", 0)
        with pytest.raises(UserError, match=r"had terminated False, the first True"):
            evaluate(stored, tmp_path / "e.h5", num_episodes=1, ways=["sample"], video=tmp_path / "film.mp4")
        # What was played is not lost with its film.
        assert load_evaluation(tmp_path / "e.h5").episodes["sample"]["length"].tolist() == [20]
        OwnRandomness.metadata["render_modes"] = []
        with pytest.raises(UserError, match=r"OwnRandomness-v0 draws no pictures"):
            evaluate(stored, tmp_path / "e.h5", video=tmp_path / "film.mp4")
    finally:
        OwnRandomness.metadata["render_modes"] = ["rgb_array"]
        del gym.registry["OwnRandomness-v0"]
    # A film that was there before is still.
    assert (tmp_path / "film.mp4").read_bytes() == before
    assert not list(tmp_path.glob(".film*"))


class Drawn(gym.Env):
    """Draws itself as it is told to, at a port that no other simulator may have."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": None}  # noqa: RUF012
    observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)
    ports: set[int] = set()  # noqa: RUF012

    def __init__(self, number=0, draws="numbers", render_mode=None):
        self.render_mode, self.draws, self.number = render_mode, draws, number
        if number in self.ports:
            raise OSError("Address already in use")
        self.ports.add(number)

    def reset(self, *, seed=None, options=None):
        self.now = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.now += 1
        return np.zeros(2, np.float32), 1.0, self.now == 4, False, {}

    def render(self):
        if self.draws == "nothing":
            raise RuntimeError("an OpenGL platform library\nhas not been loaded")
        return np.full((8, 8, 3), 0.5 if self.draws == "numbers" else 1.5)

    def close(self):
        self.ports.discard(self.number)


@pytest.fixture
def drawn(store, monkeypatch):
    """Return the policy of a run whose environment draws as it is told to."""
    monkeypatch.setitem(gym.registry, "Drawn-v0", gym.envs.registration.EnvSpec("Drawn-v0", entry_point=Drawn))
    kwargs = '{{ number = "{{simulator}}", draws = "{draws}" }}'

    def make(draws):
        return find_policy(store("Drawn-v0", settings={"environment.kwargs": kwargs.format(draws=draws)}))

    return make


def test_a_film_has_no_simulator_beside_those_that_play(drawn, tmp_path) -> None:
    av = pytest.importorskip("av")
    evaluate(drawn("numbers"), tmp_path / "e.h5", num_episodes=2, video=tmp_path / "film.mp4")
    with av.open(str(tmp_path / "film.mp4")) as container:
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(pictures) == 5
    assert abs(int(np.median(pictures[0])) - 128) <= 3
    assert not Drawn.ports


@pytest.mark.parametrize(
    ("draws", "told"),
    [
        ("nothing", r"cannot be drawn: RuntimeError: an OpenGL platform library has not been loaded; .*MUJOCO_GL=egl"),
        ("bright", r"draws float64 of shape \(8, 8, 3\); must be uint8, or numbers from 0 to 1"),
    ],
)
def test_what_does_not_draw_itself_is_told_before_anything_is_played(drawn, tmp_path, draws, told) -> None:
    pytest.importorskip("av")
    with pytest.raises(UserError, match=told) as error:
        evaluate(drawn(draws), tmp_path / "e.h5", num_episodes=1, video=tmp_path / "film.mp4")
    assert "\n" not in str(error.value)
    assert not Drawn.ports and not list(tmp_path.glob("*.mp4")) and not (tmp_path / "e.h5").exists()
