"""Evaluation: episodes played with a stored policy, under the rules of the paper.

A second, small hall: it sees learning and results, and no MPI.

The rules (Mnih et al. 2015; Assran et al. 2019, section 4): FIRE and no-ops at the start, full games, the game's own
score. A lost life ends nothing. After it FIRE is pressed once where the game has that button, as at the start: a policy
that is greedy may never press it, and Breakout waits for ever. An episode in which nothing happens any more is ended.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch

from galampi.errors import UserError
from galampi.learning import Learner, Simulators, make_simulators
from galampi.learning.envs import MOST_SEED
from galampi.policies.stored import StoredPolicy
from galampi.policies.video import Video
from galampi.results.evaluation import EvaluatedEpisode, save_evaluation

MOST_SIMULATORS = 16
"""Episodes played at once."""
STUCK_AFTER = 3000
"""Env steps without reward or lost life after which a game is stuck: 200 s of play in an Atari game, longer than any
that ends by the clock."""
_PACKAGES = ("galampi", "torch", "h5py", "gymnasium", "ale-py", "numpy")
_SEEDS = 0x6576616C
"""Keeps the seeds of evaluations apart from those of training."""


def evaluate(
    stored: StoredPolicy,
    path: Path,
    *,
    num_episodes: int = 10,
    greedy: bool = True,
    seed: int | None = None,
    stuck_after: int = STUCK_AFTER,
    video: Path | None = None,
    report: Callable[[EvaluatedEpisode], None] = lambda episode: None,
) -> list[EvaluatedEpisode]:
    """Play episodes with a stored policy and write them to a file. Local.

    The network computes in float32 on one thread of the processor, so that the same policy and seed give the same
    episodes on every machine of a kind.

    Args:
        stored: The policy.
        path: Results file, written when the last episode has ended.
        num_episodes: Episodes to play.
        greedy: Take the most probable action; otherwise draw it.
        seed: Of simulators and actions; the job's own if None.
        stuck_after: Env steps without reward or lost life that end an episode.
        video: File for a film of the first episode.
        report: Called with each episode when it has ended.

    Returns:
        The episodes in order of their number.

    Raises:
        UserError: The environment is unknown or does not fit the policy, or a file cannot be written.
    """
    for file in (path, video):
        if file is not None:
            _require_writable(file)
    torch.set_num_threads(1)
    sequence = np.random.SeedSequence([stored.job.seed if seed is None else seed, _SEEDS])
    words = sequence.generate_state(2, np.uint32)
    first_seed = int(words[0]) % (MOST_SEED - num_episodes)
    learner: Learner | None = None
    episodes: list[EvaluatedEpisode] = []
    while len(episodes) < num_episodes:
        num_before = len(episodes)
        num_envs = min(MOST_SIMULATORS, num_episodes - num_before)
        environment = stored.job.environment.model_copy(update={"num_envs": num_envs})
        simulators = make_simulators(
            environment,
            seed=first_seed + num_before,
            num_threads=min(num_envs, len(os.sched_getaffinity(0))),
            life_ends_return=True,
        )
        with closing(simulators):
            learner = learner or make_learner(stored, simulators, action_seed=int(words[1]))
            filming = Video(video, environment, first_seed) if video and not num_before else nullcontext()
            with filming as film:
                for simulator, ended in _play(simulators, learner, _fire(simulators), film, greedy, stuck_after):
                    number = num_before + simulator + 1
                    episode = EvaluatedEpisode(episode=number, seed=first_seed + number - 1, **asdict(ended))
                    report(episode)
                    episodes.append(episode)
    episodes.sort(key=lambda episode: episode.episode)
    attributes = {
        "policy": stored.source,
        "updates": list(stored.updates),
        "env_steps": stored.env_steps,
        "actions": "greedy" if greedy else "sample",
        "stuck_after": stuck_after,
        "wall_clock": datetime.now(UTC).isoformat(timespec="seconds"),
        **{f"environment_{key}": value for key, value in simulators.description.items()},
        **{f"{package.replace('-', '_')}_version": version(package) for package in _PACKAGES},
    }
    save_evaluation(path, episodes, attributes)
    return episodes


def _require_writable(file: Path) -> None:
    if not (file.parent.is_dir() and os.access(file.parent, os.W_OK)):
        raise UserError(f"{file}: cannot be written: {file.parent} is no folder to write to")
    if file.is_dir():
        raise UserError(f"{file}: cannot be written: it is a folder")


def summary(stored: StoredPolicy, episodes: Sequence[EvaluatedEpisode]) -> str:
    """Say in a few lines what an evaluation came to."""
    returns = np.array([episode.episodic_return for episode in episodes])
    deviation = f" +- {returns.std(ddof=1):.2f} (standard deviation)" if len(returns) > 1 else ""
    stuck = sum(episode.end == "stuck" for episode in episodes)
    played = f"{len(returns)} episode{'s' * (len(returns) > 1)}"
    return (
        f"policy    {stored.source}, after {stored.env_steps:,} env steps\n"
        f"return    mean {returns.mean():.2f}{deviation}, median {np.median(returns):.2f},"
        f" from {returns.min():.2f} to {returns.max():.2f}; {played}, raw score of full games\n"
        f"stuck     {stuck} of {played}"
    )


@dataclass(frozen=True)
class _Ended:
    """How an episode went."""

    episodic_return: float
    length: int
    end: str


def make_learner(stored: StoredPolicy, simulators: Simulators, action_seed: int) -> Learner:
    """Return a learner on the processor, in float32, whose network is the stored policy.

    Raises:
        UserError: The policy does not fit the environment.
    """
    learner = Learner(
        stored.job,
        simulators.single_observation_space,
        simulators.single_action_space,
        total_simulators=simulators.num_envs,
        seed=stored.job.seed,
        action_seed=action_seed,
        device="cpu",
        precision="float32",
    )
    learner.load_state({**learner.state(), "z": stored.z})
    return learner


def _fire(simulators: Simulators) -> int | None:
    """Return the action that presses FIRE alone, or None where the game has no such button."""
    if not simulators.is_atari:
        return None
    description = simulators.description
    with closing(gym.make(str(description["id"]), full_action_space=bool(description["full_action_space"]))) as game:
        meanings: list[str] = game.unwrapped.get_action_meanings()  # type: ignore[attr-defined]
    return meanings.index("FIRE") if "FIRE" in meanings else None


def _play(
    simulators: Simulators,
    learner: Learner,
    fire: int | None,
    film: Video | None,
    greedy: bool,
    stuck_after: int,
) -> Iterator[tuple[int, _Ended]]:
    """Play one episode in every simulator, and yield each with its simulator when it ends.

    A simulator whose episode has ended plays on unseen until the last has: its steps are cheap beside the rest.
    """
    policy = learner.policy
    num_envs = simulators.num_envs
    activations = policy.new_activations(num_envs)
    # Scores are sums of up to 100,000 rewards: float32 would lose single points.
    returns = np.zeros(num_envs)
    idle = np.zeros(num_envs, np.int64)
    playing = np.ones(num_envs, np.bool_)
    presses_fire = np.zeros(num_envs, np.bool_)
    length = 0
    observations = simulators.reset()
    while playing.any():
        policy.encode(observations, activations[0])
        outputs, _ = policy.forward(activations)
        actions = policy.actions.mode(outputs).numpy() if greedy else policy.sample(outputs, learner.generator)
        if fire is not None:
            actions = np.where(presses_fire, fire, actions)
        observations, rewards, terminated, truncated, life_lost = simulators.step(actions)
        if film is not None and playing[0]:
            film.follow(actions[0], float(rewards[0]), bool(terminated[0]), bool(truncated[0]))
        length += 1
        returns += rewards
        idle = np.where((rewards != 0) | life_lost, 0, idle + 1)
        presses_fire = life_lost
        ended = playing & (terminated | truncated | (idle >= stuck_after))
        for i in np.flatnonzero(ended):
            end = "terminated" if terminated[i] else "truncated" if truncated[i] else "stuck"
            yield int(i), _Ended(float(returns[i]), length, end)
        playing &= ~ended
