"""Pictures of an episode as a video file.

Owns the second simulator that shows the game in colour, and the encoder. Knows nothing of policies: it is told the
actions.
"""

from __future__ import annotations

import importlib
import os
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from ale_py.vector_env import AtariVectorEnv

from galampi.environments import Simulators
from galampi.environments.making import render_modes, spec_of
from galampi.environments.rows import Row
from galampi.environments.vector import Games, atari_settings
from galampi.errors import USERS_FAILURES, UserError
from galampi.job import Environment
from galampi.job.modules import one_line

ATARI_FRAMES_PER_S = 60
LEAST_HEIGHT = 400
"""Smaller pictures are enlarged by a whole number, to be seen at all."""


class Video:
    """A film of one simulator, made by a twin: a second one with the same seed that is given the same actions.

    The simulators of a policy show small grey pictures, or none. The twin plays the same game, for simulators depend
    on nothing but their seed and their actions; where that is not so, making the film fails.
    """

    def __init__(self, path: Path, environment: Environment, seed: int) -> None:
        """Start the twin and the file.

        Args:
            path: The file; its suffix names the format.
            environment: What is simulated.
            seed: Of the simulator to film.

        Raises:
            UserError: The encoder is not installed, knows no such format, or the environment draws no pictures.
        """
        try:
            self._av: Any = importlib.import_module("av")
        except ModuleNotFoundError:
            raise UserError("--video needs the package av: pip install 'galampi[video]'") from None
        self._vector: Games | Row
        # A game with arguments or wrappers is simulated, and draws itself, as any other environment.
        if environment.is_atari and not (environment.kwargs or environment.wrappers):
            self._vector, frames_per_s = _atari(environment, seed)
        else:
            self._vector, frames_per_s = _drawn(environment, seed)
        self._simulators = Simulators(
            self._vector, 1, is_atari=environment.is_atari, life_ends_return=False, settings={}
        )
        self._path = path
        # What lies there stays until there is another whole film.
        self._part = path.with_name(f".{path.stem}.part{path.suffix}")
        with ExitStack() as stack:
            stack.callback(self._simulators.close)
            self._observations = self._simulators.reset()
            first = self._picture()
            try:
                self._container = self._av.open(str(self._part), "w")
                stack.callback(self._discard_file)
                self._stream = self._container.add_stream("libx264", rate=frames_per_s, options={"crf": "18"})
            except (ValueError, OSError):
                # Of formats that are known some hold no H.264, as .webm.
                raise UserError(
                    f"--video is {path}; its name must end in .mp4, .mkv or another that holds H.264"
                ) from None
            self._stream.pix_fmt = "yuv420p"
            self._stream.height, self._stream.width = first.shape[:2]
            self._write(first)
            stack.pop_all()

    def follow(self, action: np.ndarray, reward: float, terminated: bool, truncated: bool) -> None:
        """Take a step and add its picture.

        Args:
            action: Of the policy, for the simulator that is filmed, [] or [k].
            reward: What that simulator answered.
            terminated: Whether its episode ended.
            truncated: Whether its episode was cut.

        Raises:
            UserError: The twin answers otherwise.
        """
        step = self._simulators.step(action[None])
        for name, seen, filmed in (
            ("reward", reward, float(step.rewards[0])),
            ("terminated", terminated, bool(step.terminated[0])),
            ("truncated", truncated, bool(step.truncated[0])),
        ):
            if filmed != seen:
                raise UserError(
                    f"--video: a second simulator with the same seed and actions had {name} {filmed}, the first "
                    f"{seen}; environments with randomness of their own cannot be filmed"
                )
        self._observations = step.observations
        self._write(self._picture())

    def close(self) -> None:
        """Finish the file, put it in its place and end the twin.

        Raises:
            UserError: The file cannot be written, or its format holds no such film.
        """
        try:
            self._finish()
            self._part.replace(self._path)
        except BaseException:
            self._discard_file()
            raise
        finally:
            self._simulators.close()

    def discard(self) -> None:
        """End the twin, and leave no film."""
        self._discard_file()
        self._simulators.close()

    def try_out(self) -> None:
        """See that a film could be finished, and leave none.

        Raises:
            UserError: As from `close`.
        """
        try:
            self._finish()
        finally:
            self.discard()

    def __enter__(self) -> Self:
        """Return the video, to be closed at the end of the block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close; of a film that is not whole nothing stays."""
        if kind is None:
            self.close()
        else:
            self.discard()

    def _finish(self) -> None:
        try:
            for packet in self._stream.encode(None):
                self._container.mux(packet)
            self._container.close()
        except (ValueError, OSError) as error:
            # Some formats tell only at the end that they hold no H.264, as .ogg.
            raise UserError(f"--video is {self._path}; it cannot be written: {one_line(error)}") from None

    def _discard_file(self) -> None:
        with suppress(ValueError, OSError):
            self._container.close()
        self._part.unlink(missing_ok=True)

    def _picture(self) -> np.ndarray:
        """Return the picture [height, width, 3] uint8 with even sides, as the encoder wants them."""
        if isinstance(self._vector, Games):
            picture = self._observations[0].transpose(1, 2, 0)
        else:
            try:
                picture = np.asarray(self._vector.render()[0])
            except USERS_FAILURES as error:
                hint = "; without a display set MUJOCO_GL=egl or osmesa" if "OpenGL" in str(error) else ""
                raise UserError(f"--video: the environment cannot be drawn: {one_line(error)}{hint}") from None
            if picture.dtype.kind == "f" and picture.size and 0 <= picture.min() <= picture.max() <= 1:
                picture = np.rint(255 * picture).astype(np.uint8)
        if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8 or not picture.size:
            raise UserError(
                f"--video: the environment draws {picture.dtype} of shape {picture.shape}; must be uint8, or numbers "
                "from 0 to 1, of [height, width, 3]"
            )
        scale = -(-LEAST_HEIGHT // picture.shape[0])
        picture = picture.repeat(scale, axis=0).repeat(scale, axis=1)
        return np.ascontiguousarray(picture[: picture.shape[0] // 2 * 2, : picture.shape[1] // 2 * 2])

    def _write(self, picture: np.ndarray) -> None:
        for packet in self._stream.encode(self._av.VideoFrame.from_ndarray(picture, format="rgb24")):
            self._container.mux(packet)


def _atari(environment: Environment, seed: int) -> tuple[Games, int]:
    """Return one game as `make_simulators` makes it, but in colour and full size; and pictures a second."""
    shown = {"img_height": 210, "img_width": 160, "grayscale": False, "stack_num": 1}
    games = AtariVectorEnv(
        spec_of(environment.id).kwargs["game"], 1, **(atari_settings(environment, num_threads=1) | shown)
    )
    return Games(games, seed), max(1, round(ATARI_FRAMES_PER_S / environment.frame_skip))


def _drawn(environment: Environment, seed: int) -> tuple[Row, int]:
    """Return the environment as it draws itself, and pictures a second."""
    modes, frames_per_s = render_modes(environment)
    if "rgb_array" not in modes:
        raise UserError(f"--video: {environment.id} draws no pictures: it has no render mode 'rgb_array'")
    # No window is opened, so SDL need not look for a display, and tell of one that is missing.
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    return Row(environment, [0], 0, seed, "rgb_array"), max(1, round(frames_per_s))
