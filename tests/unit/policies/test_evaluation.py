"""Episodes of a stored policy: against the bare emulator, and every way they end."""

import errno
from pathlib import Path

import ale_py
import gymnasium as gym
import h5py
import numpy as np
import pytest
from ale_py import roms
from ale_py.vector_env import AtariVectorEnv

from galampi import cli
from galampi.environments import Simulators
from galampi.errors import UserError
from galampi.job import parse_job
from galampi.policies import evaluation
from galampi.policies import played as playing
from galampi.policies.evaluation import evaluate
from galampi.policies.export import export_onnx, export_policy
from galampi.policies.played import Bounds, Played, summary
from galampi.policies.stored import StoredPolicy, find_policy
from galampi.results.evaluation import EvaluatedEpisode, load_evaluation
from galampi.results.sole import sole_writer

NOOP, FIRE = 0, 1


@pytest.fixture
def taken(monkeypatch):
    """Note what the simulators were told and answered: actions, and life_lost, of every step."""
    steps = []
    step = Simulators.step

    def noting(self, actions):
        answer = step(self, actions)
        if self.single_observation_space.shape != (1, 210, 160, 3):
            steps.append((actions.copy(), answer.life_lost.copy()))
        return answer

    monkeypatch.setattr(Simulators, "step", noting)
    return steps


@pytest.fixture
def first_frames(monkeypatch):
    """Note how many frames of each game had passed when it was handed over: FIRE and no-ops."""
    frames = []
    reset = AtariVectorEnv.reset

    def noting(self, **settings):
        observations, info = reset(self, **settings)
        if not frames:
            frames.extend(info["episode_frame_number"].tolist())
        return observations, info

    monkeypatch.setattr(AtariVectorEnv, "reset", noting)
    return frames


def bare_game_return(game, num_frames, actions) -> float:
    """Score and game over of the emulator itself, after the same actions."""
    ale = ale_py.ALEInterface()
    ale.setFloat("repeat_action_probability", 0.0)
    ale.loadROM(roms.get_rom_path(game))
    buttons = ale.getMinimalActionSet()
    ale.reset_game()
    ale.act(ale_py.Action.FIRE)
    while ale.getEpisodeFrameNumber() < num_frames:
        ale.act(ale_py.Action.NOOP)
    score = 0
    for action in actions:
        assert not ale.game_over()
        for _ in range(4):
            score += ale.act(buttons[action])
            if ale.game_over():
                break
    assert ale.game_over()
    return score


@pytest.mark.parametrize("game", ["space_invaders", "breakout"])
def test_the_recorded_return_is_the_emulators_own(store, taken, first_frames, tmp_path, game) -> None:
    out = store("ALE/" + "".join(word.capitalize() for word in game.split("_")) + "-v5")
    episodes = evaluate(find_policy(out), tmp_path / "e.h5", num_episodes=2, ways=["sample"]).episodes["sample"]
    assert len(set(first_frames)) == 2
    for i, episode in enumerate(episodes):
        actions = [actions[i] for actions, _ in taken[: episode.length]]
        assert bare_game_return(game, first_frames[i], actions) == episode.episodic_return
        assert episode.end == "terminated"
    # More than a clipped reward would give, and over all lives.
    if game == "space_invaders":
        assert episodes[0].episodic_return >= 30


@pytest.mark.parametrize("kwargs", ["{}", "{ difficulty = 0 }"])
def test_fire_is_pressed_after_a_lost_life_and_the_game_goes_on(
    store, constant_policy, taken, tmp_path, kwargs
) -> None:
    settings = {"environment.kwargs": kwargs}
    out = store("ALE/Breakout-v5", z=constant_policy("ALE/Breakout-v5", NOOP), settings=settings)
    (episode,) = evaluate(find_policy(out), tmp_path / "e.h5", num_episodes=1, ways=["greedy"]).episodes["greedy"]
    assert episode.end == "terminated"
    lost = [bool(life_lost[0]) for _, life_lost in taken]
    assert sum(lost) == 4
    assert [int(actions[0]) for actions, _ in taken] == [FIRE if before else NOOP for before in [False, *lost[:-1]]]


def test_a_stuck_game_ends_and_is_reported(store, constant_policy, taken, tmp_path, monkeypatch) -> None:
    """Without FIRE Breakout waits for ever after the first lost life."""
    monkeypatch.setattr(evaluation, "_fire", lambda environment, action_space: None)
    stored = find_policy(store("ALE/Breakout-v5", z=constant_policy("ALE/Breakout-v5", NOOP)))
    played = evaluate(stored, tmp_path / "e.h5", num_episodes=2, ways=["greedy"], stuck_after=150)
    for i, episode in enumerate(played.episodes["greedy"]):
        first_loss = next(t for t, (_, life_lost) in enumerate(taken) if life_lost[i]) + 1
        assert (episode.end, episode.length) == ("stuck", first_loss + 150)
    assert "stuck     2 of 2 episodes (150 env steps without reward or lost life)" in summary(stored, played)


def test_a_game_that_is_cut_is_truncated(store, tmp_path) -> None:
    out = store("ALE/Pong-v5", settings={"environment.max_episode_frames": "200"})
    (episode,) = evaluate(find_policy(out), tmp_path / "e.h5", num_episodes=1, ways=["sample"]).episodes["sample"]
    assert episode.end == "truncated"
    assert episode.length <= 50


class Late(gym.Env):
    """An environment with one reward, at its last step; without an end if there is no such step."""

    observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, last=None):
        self.last = last

    def reset(self, *, seed=None, options=None):
        self.steps = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.steps += 1
        ends = self.steps == self.last
        return np.zeros(2, np.float32), float(ends), ends, False, {}


@pytest.fixture
def late():
    """Register environments of that kind, by what ends them."""
    gym.register("Late-v0", Late, kwargs={"last": 5000})
    gym.register("LateInTime-v0", Late, kwargs={"last": 5000}, max_episode_steps=6000)
    gym.register("Endless-v0", Late)
    gym.register("EndlessButCut-v0", Late, max_episode_steps=300)
    yield
    for name in ("Late-v0", "LateInTime-v0", "Endless-v0", "EndlessButCut-v0"):
        del gym.registry[name]


@pytest.mark.parametrize("name", ["Late-v0", pytest.param("LateInTime-v0", marks=pytest.mark.slow)])
def test_only_games_of_atari_get_stuck(store, late, tmp_path, name) -> None:
    stored = find_policy(store(name))
    played = evaluate(stored, tmp_path / "e.h5", num_episodes=2)
    for episodes in played.episodes.values():
        assert [(e.end, e.length, e.episodic_return) for e in episodes] == [("terminated", 5000, 1.0)] * 2
    assert "stuck" not in summary(stored, played)
    with pytest.raises(UserError, match=rf"^--stuck-after is 9 for {name}; only games of Atari get stuck"):
        evaluate(stored, tmp_path / "e.h5", stuck_after=9)


def test_episodes_that_never_end_are_cut_and_told(store, late, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(playing, "MOST_STEPS", 700)
    monkeypatch.setattr(playing, "_PROGRESS_PERIOD_S", 0.0)
    stored = find_policy(store("Endless-v0"))
    told = []
    played = evaluate(stored, tmp_path / "e.h5", num_episodes=2, tell=told.append)
    assert {(e.end, e.length) for episodes in played.episodes.values() for e in episodes} == {("cut", 700)}
    assert told[1] == (
        "sample  2 episodes playing, after 2 env steps; none has ended yet, Endless-v0 has no time limit, cut after "
        "700 (--max-episode-steps)"
    )
    assert summary(stored, played).splitlines()[-1] == (
        "cut       4 of 4 episodes (700 env steps, --max-episode-steps): no episode has ended by itself; "
        "Endless-v0 has no time limit"
    )
    assert load_evaluation(tmp_path / "e.h5").attributes["max_episode_steps"] == 700


def test_an_environments_own_time_limit_counts_first(store, late, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(playing, "MOST_STEPS", 100)
    stored = find_policy(store("EndlessButCut-v0"))
    for bound, end in ((None, ("truncated", 300)), (300, ("truncated", 300)), (299, ("cut", 299))):
        played = evaluate(stored, tmp_path / "e.h5", num_episodes=1, ways=["sample"], max_episode_steps=bound)
        (episode,) = played.episodes["sample"]
        assert (episode.end, episode.length) == end
    assert summary(stored, played).endswith("by itself")


def told(sample, greedy) -> list[str]:
    """What is told of these returns."""
    episodes = {
        actions: [
            EvaluatedEpisode(
                episode=k, episodic_return=value, length=9, end="terminated", seed=k, taken=np.zeros(9, np.int64)
            )
            for k, value in enumerate(returns, 1)
        ]
        for actions, returns in (("sample", sample), ("greedy", greedy))
        if returns
    }
    job = parse_job("", "test", {"environment.id": "CartPole-v1"})
    stored = StoredPolicy(job, np.zeros(1), "mean", (5, 5), 250_000)
    return summary(stored, Played(episodes, Bounds(500, None, None))).splitlines()


def test_the_headline_is_what_training_shows() -> None:
    policy, first, second, why = told([3900.0, 4100.0], [0.0, 0.0])
    assert policy == "policy    mean of 2 ranks, after 250,000 env steps"
    assert first.startswith(
        "return    mean 4000.00 +- 141.42 (standard deviation), median 4000.00, from 3900.00 to 4100"
    )
    assert first.endswith("2 episodes, raw score of full games; actions drawn, as in training")
    assert second.startswith("greedy    mean 0.00 +- 0.00")
    assert second.endswith("2 episodes; the most probable actions, as in the paper")
    assert "the two differ widely: this policy still acts by chance" in why
    assert len(told([3900.0, 4100.0], [3800.0, 4000.0])) == 3
    # Of one episode there is no deviation to differ by.
    assert len(told([3900.0], [0.0])) == 3
    _, alone = told([], [3.0, 5.0])
    assert alone.startswith("return    mean 4.00")
    assert alone.endswith("the most probable actions, as in the paper")


def test_files_of_one_kind_of_episodes_stay_readable(store, tmp_path) -> None:
    """As they were before there were two kinds."""
    path = tmp_path / "e.h5"
    played = evaluate(find_policy(store("CartPole-v1")), path, num_episodes=2, ways=["greedy"])
    with h5py.File(path) as file:
        assert file.attrs["actions"] == "greedy"
        assert [name for name in file] == ["episodes", "taken"]
    read = load_evaluation(path)
    assert list(read.episodes) == ["greedy"]
    assert read.episodes["greedy"]["return"].tolist() == played.returns("greedy").tolist()


def test_continuous_actions_are_the_means(store, tmp_path) -> None:
    """Pendulum played by hand with the network's mean, for which the bounds lie at -1 and 1."""
    stored = find_policy(store("Pendulum-v1"))
    (episode,) = evaluate(stored, tmp_path / "e.h5", num_episodes=1, ways=["greedy"], seed=4).episodes["greedy"]
    env = gym.make("Pendulum-v1")
    weights = np.split(stored.z, np.cumsum([64 * 3, 64, 64 * 64, 64, 64, 1]))[:6]
    first, first_bias, second, second_bias, head, head_bias = weights
    observation, _ = env.reset(seed=episode.seed)
    total, end = 0.0, False
    while not end:
        hidden = np.tanh(first.reshape(64, 3) @ observation + first_bias)
        hidden = np.tanh(second.reshape(64, 64) @ hidden + second_bias)
        observation, reward, _, end, _ = env.step(np.clip(2 * (head @ hidden + head_bias), -2, 2).astype(np.float32))
        total += reward
    assert episode.length == 200
    assert episode.end == "truncated"
    assert episode.episodic_return == pytest.approx(total, rel=1e-3)


def test_the_same_seed_plays_the_same_episodes(store, tmp_path) -> None:
    stored = find_policy(store("CartPole-v1"))
    games = [evaluate(stored, tmp_path / "e.h5", num_episodes=3, seed=seed).episodes for seed in (5, 5, 6)]
    assert games[0] == games[1]
    assert games[0]["sample"] != games[2]["sample"]
    # Neither way depends on whether the other is played too.
    for actions in ("sample", "greedy"):
        alone = evaluate(stored, tmp_path / "e.h5", num_episodes=3, ways=[actions], seed=5)
        assert alone.episodes == {actions: games[0][actions]}


def test_more_episodes_than_simulators_have_seeds_of_their_own(store, tmp_path) -> None:
    reported = {"sample": [], "greedy": []}
    stored = find_policy(store("CartPole-v1"))
    report = lambda actions, episode: reported[actions].append(episode)  # noqa: E731
    played = evaluate(stored, tmp_path / "e.h5", num_episodes=37, report=report)
    assert list(played.episodes) == ["sample", "greedy"]
    for actions, episodes in played.episodes.items():
        assert [e.episode for e in episodes] == list(range(1, 38))
        assert np.diff([e.seed for e in episodes]).tolist() == [1] * 36
        assert sorted(reported[actions], key=lambda e: e.episode) == episodes
        # Nor does a later round repeat the games of the first.
        assert [e.length for e in episodes[:16]] != [e.length for e in episodes[16:32]]


def test_the_file_is_plain_and_says_what_it_is(store, tmp_path) -> None:
    path = tmp_path / "e.h5"
    played = evaluate(find_policy(store("CartPole-v1", weights=(1.0, 1.0))), path, num_episodes=3)
    read = load_evaluation(path)
    assert list(read.episodes) == ["sample", "greedy"]
    for actions, columns in read.episodes.items():
        assert columns["return"].tolist() == played.returns(actions).tolist()
        assert columns["end"].tolist() == ["terminated"] * 3
    assert read.attributes["policy"] == "mean"
    assert read.attributes["updates"] == [70, 71]
    assert read.attributes["actions"] == "sample"
    assert read.attributes["time_limit"] == 500
    assert "stuck_after" not in read.attributes
    assert read.attributes["environment_id"] == "CartPole-v1"
    with h5py.File(path) as file:
        assert file.attrs["schema_version"] == 1
        table = file["episodes"]
        assert {name: table[name].attrs["units"] for name in table} == {
            "num_rows": "1",
            "episode": "1",
            "return": "1",
            "length": "env step",
            "end": "1",
            "seed": "1",
        }
        assert table["return"].dims[0].keys() == ["episode"]
        # What a reader of files of one kind finds is what the root says.
        assert table["return"][:].tolist() == played.returns("sample").tolist()
        assert file["greedy_episodes/return"][:].tolist() == played.returns("greedy").tolist()
    xarray = pytest.importorskip("xarray")
    pytest.importorskip("h5netcdf")
    dataset = xarray.open_dataset(path, group="episodes", engine="h5netcdf")
    assert dataset["return"].dims == ("episode",)
    assert dataset["end"].values.tolist() == ["terminated"] * 3
    dataset.close()


def test_nothing_is_played_for_a_file_that_cannot_be_written(store, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(evaluation, "simulators_of", None)
    stored = find_policy(store("CartPole-v1"))
    with pytest.raises(UserError, match=r"nowhere is no folder to write to"):
        evaluate(stored, tmp_path / "nowhere/e.h5")
    with pytest.raises(UserError, match=r"job\.h5 is no folder to write to"):
        evaluate(stored, tmp_path / "run/job.h5/e.h5")
    for film in (None, tmp_path):
        with pytest.raises(UserError, match=r"cannot be written: it is a folder"):
            evaluate(stored, tmp_path / "e.h5" if film else tmp_path, video=film)


def test_nothing_is_played_for_a_file_that_is_being_written(store, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(evaluation, "simulators_of", None)
    stored = find_policy(store("CartPole-v1"))
    for held in (tmp_path / "e.h5", tmp_path / "film.mp4"):
        with sole_writer(held), pytest.raises(UserError, match=rf"^{held}: is being written by another process"):
            evaluate(stored, tmp_path / "e.h5", video=tmp_path / "film.mp4")


def test_parameters_of_another_network(store, tmp_path) -> None:
    out = store("CartPole-v1", z=np.zeros(7, np.float32))
    with pytest.raises(UserError, match=r"holds 7 parameters; this job's network has"):
        evaluate(find_policy(out), tmp_path / "e.h5")


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_what_comes_after_an_episode_does_not_matter(store, tmp_path, monkeypatch, vectorization) -> None:
    monkeypatch.setattr("galampi.policies.play.num_cores", lambda: 2)
    settings = {
        "environment.kwargs": '{ number = "{simulator}" }',
        "environment.vectorization": vectorization,
        "environment.num_envs": "2",
    }
    stored = find_policy(store("guests:Worn", settings=settings))
    evaluate(stored, tmp_path / "e.h5", num_episodes=2, ways=["sample"])
    assert load_evaluation(tmp_path / "e.h5").episodes["sample"]["return"].tolist() == [3, 23]


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ([], "evaluation.h5"),
        (["--rank", "1"], "evaluation-rank-1.h5"),
        (["--checkpoint", "40"], "evaluation-update-40.h5"),
        (["--rank", "0", "--checkpoint", "40"], "evaluation-rank-0-update-40.h5"),
    ],
)
def test_what_another_policy_plays_replaces_nothing_of_the_runs(store, words, name) -> None:
    run = store("CartPole-v1", weights=(1.0, 1.0), kept=40)
    assert cli.run(["evaluate", str(run), "--episodes", "1", "--sample", *words]) == 0
    assert [path.name for path in run.glob("evaluation*")] == [name]


def test_of_ranks_that_exchange_nothing_the_first_stands_for_the_run(store) -> None:
    run = store("CartPole-v1", weights=(1.0, 1.0), settings={"gossip.method": "none"})
    with pytest.raises(UserError, match=r"no such evaluation; python -m galampi evaluate writes it$"):
        load_evaluation(run / "evaluation.h5")
    for rank, name in ((1, "evaluation-rank-1.h5"), (0, "evaluation.h5")):
        assert cli.run(["evaluate", str(run), "--episodes", "1", "--sample", "--rank", str(rank)]) == 0
        assert load_evaluation(run / name).attributes["policy"] == f"rank {rank}"
        if rank:
            with pytest.raises(UserError, match=r"beside it lies evaluation-rank-1\.h5, of another policy"):
                load_evaluation(run / "evaluation.h5")


def test_no_file_of_another_kind_gives_way(store, tmp_path) -> None:
    run = store("CartPole-v1")
    stored = find_policy(run)
    for other in (run / "job.h5", tmp_path / "job.toml"):
        if not other.exists():
            other.write_text("")
        before = other.read_bytes()
        with pytest.raises(UserError, match=f"^{other}: is there already, and no evaluation; choose another name$"):
            evaluate(stored, other, num_episodes=1)
        assert other.read_bytes() == before
    for _ in range(2):
        evaluate(stored, tmp_path / "e.h5", num_episodes=1)
    with pytest.raises(UserError, match=r"job\.h5: is there already, and no \.safetensors"):
        export_policy(stored, run / "job.h5")
    with pytest.raises(UserError, match=r"job\.h5: is there already, and no \.onnx"):
        export_onnx(stored, run / "job.h5")


def test_what_was_played_outlives_a_full_disk(store, tmp_path, monkeypatch) -> None:
    save = evaluation.save_evaluation
    full = tmp_path / "full"
    full.mkdir()

    def saving(path, *arguments):
        if path.parent == full:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        save(path, *arguments)

    monkeypatch.setattr(evaluation, "save_evaluation", saving)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(UserError, match="cannot be written: No space left on device; what was played is in ") as raised:
        evaluate(find_policy(store("CartPole-v1")), full / "e.h5", num_episodes=2)
    assert len(load_evaluation(Path(str(raised.value).rpartition(" ")[2])).episodes["greedy"]["seed"]) == 2


class Frail(gym.Env):
    """Raises in its steps after a number of them, over all that there are."""

    observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)
    steps_left = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.now = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.now += 1
        Frail.steps_left -= 1
        if Frail.steps_left < 0:
            raise RuntimeError("tired")
        return np.zeros(2, np.float32), 1.0, self.now == 10, False, {}


def test_what_was_played_to_the_end_outlives_a_failure(store, tmp_path, monkeypatch) -> None:
    gym.register("Frail-v0", Frail)
    try:
        stored = find_policy(store("Frail-v0"))
        monkeypatch.setattr(Frail, "steps_left", 35)
        told = r"RuntimeError: tired; the episodes with actions 'sample' had ended: .*e\.h5$"
        with pytest.raises(UserError, match=told):
            evaluate(stored, tmp_path / "e.h5", num_episodes=3)
        assert {way: len(found["return"]) for way, found in load_evaluation(tmp_path / "e.h5").episodes.items()} == {
            "sample": 3
        }
        monkeypatch.setattr(Frail, "steps_left", 25)
        with pytest.raises(UserError, match=r"RuntimeError: tired$"):
            evaluate(stored, tmp_path / "other.h5", num_episodes=3)
        assert not (tmp_path / "other.h5").exists()
        # What is there already may hold both ways.
        before = (tmp_path / "e.h5").read_bytes()
        monkeypatch.setattr(Frail, "steps_left", 35)
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        with pytest.raises(UserError, match=r"had ended: .*galampi-\d+-evaluation\.h5$"):
            evaluate(stored, tmp_path / "e.h5", num_episodes=3)
        assert (tmp_path / "e.h5").read_bytes() == before
    finally:
        del gym.registry["Frail-v0"]
