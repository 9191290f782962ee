"""Evaluation: episodes played with a stored policy, under the rules of the paper.

A second, small hall: it sees learning and results, and no MPI.

The rules (Mnih et al. 2015; Assran et al. 2019, section 4): FIRE and no-ops at the start, full games, the game's own
score. A lost life ends nothing. After it FIRE is pressed once where the game has that button, as at the start: a policy
that is greedy may never press it, and Breakout waits for ever. A game of Atari in which nothing happens any more is
ended.

A policy is played in two ways, from the same seeds: its actions are drawn, as in training, or the most probable one is
taken, as in the paper. Early in training, and where chance is part of the skill, they are two policies.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from galampi.environments import Simulators
from galampi.environments.vector import MOST_SEED, life_loss_ends_return
from galampi.errors import UserError
from galampi.job import Environment, dump_job, import_again
from galampi.learning import Learner
from galampi.learning.actions import masked
from galampi.policies.play import MOST_SIMULATORS, Choose, Filmed, play, simulators_of
from galampi.policies.played import Bounds, Played, Progress, bounds_of
from galampi.policies.stored import StoredPolicy
from galampi.policies.video import Video
from galampi.results.evaluation import (
    EVALUATION_FILE_NAME,
    Actions,
    EvaluatedEpisode,
    refuse_what_is_none,
    save_evaluation,
)
from galampi.results.job_file import Attribute
from galampi.results.sole import sole_writer

_PACKAGES = ("galampi", "torch", "h5py", "gymnasium", "ale-py", "numpy")
_SEEDS = 0x6576616C
"""Keeps the seeds of evaluations apart from those of training."""


def evaluate(
    stored: StoredPolicy,
    path: Path,
    *,
    num_episodes: int = 10,
    ways: Sequence[Actions] = ("sample", "greedy"),
    seed: int | None = None,
    stuck_after: int | None = None,
    max_episode_steps: int | None = None,
    video: Path | None = None,
    report: Callable[[Actions, EvaluatedEpisode], None] = lambda actions, episode: None,
    tell: Callable[[str], None] = lambda line: None,
) -> Played:
    """Play episodes with a stored policy and write them to a file. Local.

    The network computes in float32 on one thread of the processor, so that the same policy and seed give the same
    episodes on every machine of a kind.

    Args:
        stored: The policy.
        path: Results file, written when the last episode has ended; of one way, where the other fails.
        num_episodes: Episodes to play each way.
        ways: How to play them, one way after the other: draw the action, or take the most probable one.
        seed: Of simulators and actions; the job's own if None.
        stuck_after: Env steps without reward or lost life that end an episode of Atari; `STUCK_AFTER` if None.
        max_episode_steps: Env steps that end an episode; `MOST_STEPS` if None and the environment has no time limit.
        video: File for a film of the first episode of the better way.
        report: Called with each episode when it has ended.
        tell: Called with a line now and then while no episode ends.

    Returns:
        The episodes.

    Raises:
        UserError: The environment is unknown, does not fit the policy or has no rule that is asked for, or a file
            cannot be written or is being written.
    """
    files = [file for file in (path, video) if file is not None]
    _check_writable(files)
    refuse_what_is_none(path)
    import_again(stored.job, stored.modules, tell)
    bounds = bounds_of(stored.job.environment, stuck_after, max_episode_steps)
    torch.set_num_threads(1)
    sequence = np.random.SeedSequence([stored.job.seed if seed is None else seed, _SEEDS])
    words = sequence.generate_state(2, np.uint32)
    first_seed = int(words[0]) % (MOST_SEED - num_episodes)
    player = _Player(stored, bounds, first_seed=first_seed, action_seed=int(words[1]))
    episodes: dict[Actions, list[EvaluatedEpisode]] = {actions: [] for actions in ways}
    firsts: dict[Actions, list[Filmed]] = {actions: [] for actions in ways}
    with ExitStack() as stack:
        for file in files:
            stack.enter_context(sole_writer(file))
        if video is not None:
            # What cannot be filmed is told before hours of play. The twin is gone meanwhile: it has the number of a
            # simulator that plays, by which environments name ports and files.
            Video(video, stored.job.environment, first_seed).try_out()
        for actions in ways:
            progress = Progress(tell, stored.job.environment.id, actions, bounds)
            filmed = firsts[actions] if video is not None else None
            try:
                for episode in player.episodes(actions, num_episodes, progress, filmed):
                    report(actions, episode)
                    episodes[actions].append(episode)
            except UserError as error:
                whole = {way: found for way, found in episodes.items() if len(found) == num_episodes}
                if not whole:
                    raise
                # What lies there may be whole.
                kept = _elsewhere() if path.exists() else path
                _save(kept, whole, player.attributes())
                ended_ways = " and ".join(f"'{way}'" for way in whole)
                raise UserError(f"{error}; the episodes with actions {ended_ways} had ended: {kept}") from error
            episodes[actions].sort(key=lambda episode: episode.episode)
        played = Played(episodes, bounds)
        _save(path, episodes, player.attributes())
        if video is not None:
            with Video(video, stored.job.environment, first_seed) as film:
                for step in firsts[played.better]:
                    film.follow(*step)
    return played


class _Player:
    """A stored policy that plays."""

    def __init__(self, stored: StoredPolicy, bounds: Bounds, *, first_seed: int, action_seed: int) -> None:
        self._stored, self._bounds = stored, bounds
        self._first_seed, self._action_seed = first_seed, action_seed
        self._learner: Learner | None = None
        self._description: Mapping[str, Attribute] = {}

    def episodes(
        self, actions: Actions, num_episodes: int, progress: Progress, filmed: list[Filmed] | None
    ) -> Iterator[EvaluatedEpisode]:
        """Play episodes one way, as many at once as there may be simulators, and yield each when it ends.

        Args:
            actions: Which way.
            num_episodes: How many.
            progress: Told after each step.
            filmed: Takes the steps of the first episode.

        Raises:
            UserError: As from `play`.
        """
        environment = self._stored.job.environment
        # As in training, where a lost life may be the end of a return.
        forgets_lives = life_loss_ends_return(environment, self._stored.job.learner.end_return_on_life_loss)
        for num_before in range(0, num_episodes, MOST_SIMULATORS):
            first_seed = self._first_seed + num_before
            num_envs = min(MOST_SIMULATORS, num_episodes - num_before)
            with closing(simulators_of(environment, first_seed=first_seed, num_envs=num_envs)) as simulators:
                self._description = simulators.description
                self._learner = self._learner or make_learner(self._stored, simulators, self._action_seed)
                fire = _fire(environment, simulators.single_action_space)
                is_greedy = actions == "greedy"
                choose = _acting(simulators, self._learner, fire, is_greedy=is_greedy, forgets_lives=forgets_lives)
                filmed_here = filmed if num_before == 0 else None
                for simulator, ended in play(simulators, choose, self._bounds, progress, filmed_here):
                    yield EvaluatedEpisode(
                        episode=num_before + simulator + 1,
                        seed=first_seed + simulator,
                        episodic_return=ended.episodic_return,
                        length=ended.length,
                        end=ended.end,
                        taken=ended.taken,
                    )

    def attributes(self) -> dict[str, Any]:
        """Return what the file says of the episodes that were played, by attribute."""
        stored = self._stored
        return {
            "job_toml": dump_job(stored.job),
            "policy": stored.source,
            "modules": list(stored.modules),
            "updates": list(stored.updates),
            "env_steps": stored.env_steps,
            **{name: bound for name, bound in asdict(self._bounds).items() if bound is not None},
            "wall_clock": datetime.now(UTC).isoformat(timespec="seconds"),
            **{f"environment_{key}": value for key, value in self._description.items()},
            **{f"{package.replace('-', '_')}_version": version(package) for package in _PACKAGES},
        }


def _save(
    path: Path, episodes: Mapping[Actions, Sequence[EvaluatedEpisode]], attributes: Mapping[str, Attribute]
) -> None:
    """Write an evaluation; if it cannot be written there, to a temporary folder: it may have been played for hours.

    Raises:
        UserError: It could not be written where it should be.
    """
    try:
        save_evaluation(path, episodes, attributes)
    except OSError as error:
        elsewhere = _elsewhere()
        try:
            save_evaluation(elsewhere, episodes, attributes)
        except OSError:
            raise UserError(f"{path}: cannot be written: {error.strerror}; nor can {elsewhere}") from None
        raise UserError(f"{path}: cannot be written: {error.strerror}; what was played is in {elsewhere}") from None


def _elsewhere() -> Path:
    return Path(tempfile.gettempdir()) / f"galampi-{os.getpid()}-{EVALUATION_FILE_NAME}"


def _check_writable(files: Sequence[Path]) -> None:
    for file in files:
        if not (file.parent.is_dir() and os.access(file.parent, os.W_OK)):
            raise UserError(f"{file}: cannot be written: {file.parent} is no folder to write to")
        if file.is_dir():
            raise UserError(f"{file}: cannot be written: it is a folder")


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
    own = {"z": stored.z} | ({"constants": stored.constants} if stored.constants is not None else {})
    learner.load_state(learner.state() | own)
    return learner


def _fire(environment: Environment, action_space: gym.Space[Any]) -> int | None:
    """Return the action that presses FIRE alone, or None where the game has no such button, or other actions."""
    if not environment.is_atari:
        return None
    with closing(gym.make(environment.id, full_action_space=environment.full_action_space)) as game:
        meanings: list[str] = game.unwrapped.get_action_meanings()  # type: ignore[attr-defined]
        has_its_actions = game.action_space == action_space
    return meanings.index("FIRE") if has_its_actions and "FIRE" in meanings else None


def _acting(
    simulators: Simulators, learner: Learner, fire: int | None, *, is_greedy: bool, forgets_lives: bool
) -> Choose:
    """Return what plays one episode as a learner's policy does; FIRE in its place after a lost life."""
    policy = learner.policy
    activations = policy.trunk.new_activations(simulators.num_envs)
    memory = policy.recurrence.new_memory(simulators.num_envs) if policy.recurrence is not None else None

    def choose(observations: np.ndarray, life_lost: np.ndarray) -> np.ndarray:
        learner.encode(observations, activations[0])
        if memory is not None and forgets_lives:
            memory.keeps = torch.from_numpy(~life_lost)[None]
        outputs, _ = policy.forward(activations, memory)
        if simulators.masks is not None:
            outputs = masked(outputs, torch.from_numpy(simulators.masks))
        actions = policy.actions.mode(outputs).numpy() if is_greedy else policy.sample(outputs, learner.generator)
        return actions if fire is None else np.where(life_lost, fire, actions)

    return choose
