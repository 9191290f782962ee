"""Weights & Biases as a place: a group for each run, in it a wandb run for each rank.

So the panels of a project overlay the ranks, and wandb can average them. Their x axis is `env_steps`, the rank's own.
With `WANDB_MODE=offline` all goes to files that `wandb sync` uploads, each stretch between two starts of a mirror one
of them; wandb knows by their run id that they belong together.

What was sent is kept in `wandb/galampi/PROJECT/RUN/mirror.json`, below `WANDB_DIR` as wandb's own files are: offline
there is nobody else to ask. It is noted at the end of each look and when the mirror ends. A mirror that is killed with
SIGKILL in between sends the rows of that look again, with the same env steps and values.

wandb uploads in a process of its own, some 15 s behind, or more where the server is away, and what is not uploaded
ends with the mirror that is killed. So what a rank was sent is unsure until wandb has ended its run, and who finds it
unsure asks how many rows have arrived, and sends again all that followed the last look by whose end no more had been
sent. Of what was sent offline the last rows are taken for not written.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import asdict
from math import isfinite
from pathlib import Path
from typing import Any

from galampi.analysis.interrupts import uninterrupted
from galampi.analysis.mirror.lasting import ENDS, LastingPlace, Sent
from galampi.analysis.mirror.place import own_folder, read_state, write_state
from galampi.analysis.mirror.rows import RankRows, Scalars
from galampi.analysis.mirror.settings import job_settings
from galampi.errors import UserError
from galampi.results.reader import Run
from galampi.results.sole import sole_writer

_EXIT_CODES = {"finished": 0, "failed": 1}
_KILLED = 255
"""wandb shows a run that ends with it as killed."""

_UPLOAD_S = 60
"""What it may take to upload the rest at the end."""

_NUM_UNWRITTEN = 400
"""Offline: no more rows, of 80 bytes and more, are in the 32 KiB that wandb may not have written to its file."""

_NUM_LOOKS = 16
"""Of so many looks it is noted what was there at their end: of the last ones, and of ever fewer before."""


class WandbProject:
    """A project, which makes a place for each run.

    Attributes:
        name: PROJECT or ENTITY/PROJECT.
        is_waited_for: Whether what is left is uploaded at the end; no longer once a user or the server has ended that.
    """

    def __init__(self, name: str) -> None:
        """Remember the name."""
        self.name = name
        self.is_waited_for = True

    def __call__(self, run: Run) -> WandbPlace:
        """Open the place of a run; see there."""
        return WandbPlace(run, self)


class WandbPlace(LastingPlace):
    """One run in a project."""

    _what = "wandb"
    _num_values_at_once = 2000

    def __init__(self, run: Run, project: WandbProject) -> None:
        """Find where an earlier mirror has ended, or take a name for the run.

        Args:
            run: The run.
            project: The project.

        Raises:
            UserError: wandb is not installed, its folder cannot be written, or another process writes there.
        """
        super().__init__()
        # What was sent is known here alone.
        self._shield = uninterrupted
        try:
            import wandb
        except ModuleNotFoundError:
            raise UserError("--wandb needs wandb: pip install 'galampi[mirror]'") from None
        self._wandb = wandb
        self._project = project
        self._entity, _, self._project_name = project.name.rpartition("/")
        self._run = run.path.resolve()
        self._runs: dict[int, Any] = {}
        self._stack = ExitStack()
        self._status = run.status
        self._ended_as = ""
        self._looks: dict[int, list[Sent]] = {}
        """What was sent of each rank by the end of looks, the last one last."""
        self._unsure: dict[int, str] = {}
        """Ranks of which not all may have arrived, and whether that was sent "online" or "offline"."""
        self._kept: dict[str, Any] = {}
        self._root = Path(os.environ.get("WANDB_DIR") or ".").resolve()
        self._open_folder()

    def close(self) -> None:
        """End the wandb runs, as killed where the run has not ended, and let others write.

        The next mirror resumes them.
        """
        with self._stack:
            try:
                if self._runs:
                    self._finish(self._status)
            finally:
                self._keep()

    def _open_folder(self) -> None:
        """Find the folder of the run's state, or make it, and read what is there."""
        # wandb tells what names a project may have; none of the others is a folder's.
        project = "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in self._project.name)
        folder = own_folder(self._run, self._root / "wandb" / "galampi" / project)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{folder}: cannot be written: {error.strerror}; WANDB_DIR names another place") from None
        self._stack.enter_context(sole_writer(folder))
        self._folder = folder
        kept = {"unsure": {}, "ranks": {}, "id": uuid.uuid4().hex[:8], "ended_as": ""} | (read_state(folder) or {})
        self._id, self._ended_as = str(kept["id"]), str(kept["ended_as"])
        self._looks = {int(rank): _read(looks) for rank, looks in kept["ranks"].items()}
        self._sent = {rank: deepcopy(looks[-1]) for rank, looks in self._looks.items()}
        self._unsure = {int(rank): how for rank, how in kept["unsure"].items()}
        self._keep()

    def _keep(self, was_begun_anew: bool = False) -> None:
        """Note what is there, if that is news."""
        for rank, sent in self._sent.items():
            looks = self._looks.setdefault(rank, [])
            if not looks or looks[-1] != sent:
                looks.append(deepcopy(sent))
            if len(looks) > _NUM_LOOKS:
                del looks[1 : _NUM_LOOKS // 2 : 2]
        ranks = {str(rank): [asdict(look) for look in looks] for rank, looks in self._looks.items()}
        kept: dict[str, Any] = {"run": str(self._run), "id": self._id, "ended_as": self._ended_as, "ranks": ranks}
        kept["unsure"] = {str(rank): how for rank, how in self._unsure.items()}
        kept["first_s"] = self._sent[0].first_s if 0 in self._sent else None
        if was_begun_anew:
            kept["was_begun_anew"] = True
        if kept != self._kept:
            write_state(self._folder, kept)
            self._kept = kept

    def _write_rank(self, run: Run, rows: RankRows) -> int:
        """Write the new rows of a rank, and those that have not arrived."""
        if rows.rank in self._unsure and rows.rank in self._sent:
            self._open(rows.rank)
        return super()._write_rank(run, rows)

    def _create(self, run: Run, rows: RankRows) -> int:
        opened = self._open(rows.rank)
        opened.config.update(
            {"galampi_run": str(self._run), "rank": rows.rank, "num_ranks": run.num_ranks, **job_settings(run)},
            allow_val_change=True,
        )
        return int(opened.starting_step)

    def _send(self, rank: int, rows: Scalars) -> None:
        run = self._open(rank)
        with self._told():
            for values, step, time_s in zip(
                rows.values.tolist(), rows.steps.tolist(), rows.times_s.tolist(), strict=True
            ):
                known = {tag: value for tag, value in zip(rows.tags, values, strict=True) if isfinite(value)}
                run.log({**known, "env_steps": step, "time_s": time_s})

    def _mark(self, rank: int, stretch: str) -> None:
        self._open(rank).config.update({"resumed": stretch}, allow_val_change=True)

    def _note(self, status: str) -> None:
        self._status = status
        if status in ENDS and status != self._ended_as:
            # Also those that the mirror before left otherwise, or open.
            for rank in self._sent.keys() - self._unsure.keys():
                self._open(rank)
            self._finish(status)
        self._keep()

    def _begin_anew(self, run: Run) -> None:
        self._finish("stopped")
        self._keep(was_begun_anew=True)
        self._stack.close()
        self._open_folder()

    def _open(self, rank: int) -> Any:
        """Return the wandb run of a rank, which goes on if it was there."""
        if rank not in self._runs:
            name = self._folder.name
            with self._told():
                run = self._wandb.init(
                    project=self._project_name,
                    entity=self._entity or None,
                    group=name,
                    name=f"{name}/rank-{rank:04}",
                    id=f"{self._id}-{rank:04}",
                    resume="allow",
                    reinit="create_new",
                    dir=str(self._root),
                    # Of the login node nothing matters.
                    settings=self._wandb.Settings(
                        console="off",
                        silent=True,
                        disable_git=True,
                        finish_timeout=_UPLOAD_S,
                        finish_timeout_raises=True,
                        x_disable_stats=True,
                        x_disable_meta=True,
                    ),
                )
                run.define_metric("env_steps")
                run.define_metric("*", step_metric="env_steps")
            if not self._runs:
                where = f"offline in {self._root}/wandb" if run.offline else f"group {name} of {run.project_url}"
                self.news.append(f"{self._run}: wandb: {where}")
            if rank in self._sent:
                self._agree(rank, run)
            self._runs[rank] = run
            self._unsure[rank] = "offline" if run.offline else "online"
            self._ended_as = ""
        return self._runs[rank]

    def _agree(self, rank: int, opened: Any) -> None:
        """Forget what was sent of a rank and has not arrived, and count as wandb does from now on."""
        sent = self._sent[rank]
        how = self._unsure.get(rank)
        if how == "online" and opened.offline:
            opened.finish(exit_code=_KILLED)
            told = "what was sent online before may not all have arrived; a mirror that is online must ask first"
            raise UserError(f"--wandb {self._project.name}: {self._run}: {told}")
        num_arrived = opened.starting_step if how == "online" else sent.num_rows - _NUM_UNWRITTEN
        if how and num_arrived < sent.num_rows:
            looks = [look for look in self._looks[rank] if look.num_rows <= num_arrived]
            last = looks[-1] if looks else Sent(sent.first_s, sent.num_restarts)
            num_again = sent.num_rows - last.num_rows
            self.news.append(f"{self._run}: rank-{rank:04}: the last {num_again:,} rows are sent to wandb again")
            sent = self._sent[rank] = deepcopy(last)
        if not opened.offline:
            sent.num_rows = opened.starting_step
        self._looks[rank] = [deepcopy(sent)]

    def _finish(self, status: str) -> None:
        """End the wandb runs that are open with a status of the run.

        Raises:
            UserError: Not all could be uploaded. wandb ends without the rest, and the next mirror sends it.
        """
        runs, self._runs = self._runs, {}
        for rank, run in runs.items():
            if not self._project.is_waited_for:
                return  # wandb ends it with this process, under the same limit.
            try:
                with self._told():
                    run.finish(exit_code=_EXIT_CODES.get(status, _KILLED))
            except BaseException:
                self._project.is_waited_for = False
                raise
            del self._unsure[rank]
        self._ended_as = status

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Tell in a line what wandb refuses."""
        try:
            yield
        except TimeoutError:
            left = f"the server does not take what is left of {self._run}; the same command sends it"
            raise UserError(f"--wandb {self._project.name}: {left}") from None
        except Exception as error:
            # Its errors have no class in common.
            if not (isinstance(error, OSError) or type(error).__module__.startswith("wandb")):
                raise
            raise UserError(
                f"--wandb {self._project.name}: {' '.join(str(error).split()) or type(error).__name__}"
            ) from None


def _read(noted: list[dict[str, Any]] | dict[str, Any]) -> list[Sent]:
    """Return what was sent of a rank by the end of looks; mirrors once noted the last alone."""
    looks = noted if isinstance(noted, list) else [noted]
    tables = [{name: (last, number) for name, (last, number) in look["tables"].items()} for look in looks]
    return [Sent(**{**look, "tables": each}) for look, each in zip(looks, tables, strict=True)]
