"""The hall: rollout, update, gossip, record.

The one module that sees the learning, gossip and results wings together. It owns the order of a job: how it starts on
every rank, its loop, and its end.
"""

from __future__ import annotations

import fcntl
import logging
import math
import os
import platform
import signal
import subprocess
import time
from collections import deque
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from mpi4py import MPI

from galampi.errors import ResultsError, UserError
from galampi.gossip import AllReduce, Gossip, Mailboxes, PushSum, UniformAverage, topology_of
from galampi.job import Job, dump_job
from galampi.learning import (
    Learner,
    RolloutCollector,
    has_convolutions,
    keep_freed_memory,
    lerp,
    make_simulators,
    resolve_device,
    resolve_precision,
)
from galampi.policies.stored import checkpoint_path
from galampi.ranks.launched import LAUNCHER_PID
from galampi.ranks.placement import Placement, end_with_launcher, place, refuse_singletons, together
from galampi.results import EnergyMeter, JobFile, RankWriter, Restart, Sketch, open_run, save_checkpoint
from galampi.training.display import Display
from galampi.training.resuming import Start, find_start, replace_set

log = logging.getLogger(__name__)

_FLUSH_PERIOD_S = 2.0
_STEP_NORM_EVERY = 8
_FEW_PARAMETERS = 100_000
_LOCK = "lock"
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
_PACKAGES = ("galampi", "torch", "mpi4py", "h5py", "gymnasium", "ale-py", "numpy")


@dataclass(frozen=True)
class Outcome:
    """What a run came to; the same on every rank.

    Attributes:
        status: `finished` or `stopped`.
        env_steps: Env steps of all ranks, resumed ones included.
        steps_per_s: Env steps a second of all ranks in this start of the run.
        mean_return: Mean return of the last 100 episodes of all ranks; NaN if none has ended.
        messages: Messages sent, all ranks.
        weights: Least and greatest push-sum weight after the drain, and their sum.
        distance: Greatest distance of a rank's parameters to the mean of all when the loop ended, before the drain.
        relative_distance: The same, over the norm of the mean.
    """

    status: str
    env_steps: int
    steps_per_s: float
    mean_return: float
    messages: int
    weights: tuple[float, float, float]
    distance: float
    relative_distance: float


def train(
    job: Job, out: Path, *, resume: bool, argv: Sequence[str], comm: MPI.Intracomm, quiet: bool = False
) -> Outcome | None:
    """Train a job, from its start or from its checkpoints. Collective over comm.

    Args:
        job: What to train.
        out: Folder of the run.
        resume: Go on with the run in `out`; otherwise `out` must be empty or new.
        argv: Command line, for the record.
        comm: The ranks of the job.
        quiet: Show no progress.

    Returns:
        What the run came to, or None if it had been finished before.

    Raises:
        UserError: On every rank, before anything is written over.
    """
    with together(comm):
        refuse_singletons(comm)
    end_with_launcher(comm)
    placement = place(comm)
    torch.set_num_threads(placement.num_threads)
    keep_freed_memory()
    with together(comm):
        lock = _claim(out, resume=resume) if comm.rank == 0 else None
    try:
        return _Rank(job, out, placement, comm, resume=resume, argv=argv).run(quiet=quiet)
    finally:
        if lock is not None:
            os.close(lock)


class _Rank:
    """One rank's part of a job."""

    def __init__(
        self, job: Job, out: Path, placement: Placement, comm: MPI.Intracomm, *, resume: bool, argv: Sequence[str]
    ) -> None:
        self.job, self.out, self.placement, self.comm, self.argv = job, out, placement, comm, argv
        with together(comm):
            num_restarts = int(open_run(out).attributes["num_restarts"]) + 1 if resume else 0
            self.start = (
                find_start(out, num_restarts, comm) if resume else Start(progress=np.zeros(comm.size, np.int64))
            )
        self.counters = dict(self.start.counters)
        self.update = self.counters["update"]
        self.env_steps = self.counters["env_steps"]

    def run(self, *, quiet: bool) -> Outcome | None:
        """Set up, train, drain, save."""
        if self.total_env_steps(self.start.progress) >= self.job.total_env_steps:
            if self.comm.rank == 0:
                # A kill between the last save and the change of the status leaves it at `running`.
                JobFile.set_status(self.out, "finished")
            return None
        self._set_up()
        caught = _catch_signals()
        total_before = self.total_env_steps(self.start.progress)
        shows = self.comm.rank == 0 and not quiet
        try:
            with Display(self.job.total_env_steps, total_before) if shows else nullcontext() as display:
                self._loop(caught, display)
        except Exception:
            self._say_failed()
            raise
        if caught:
            log.info("%s: saving", signal.Signals(caught[0]).name)
        return self._end()

    def _say_failed(self) -> None:
        """Record that the run has failed: by an error, unlike one whose ranks were killed. Local."""
        # Without its launcher a rank fails for want of that.
        if os.getppid() == LAUNCHER_PID:
            # What keeps this from being written may be the error itself, which is told in any case.
            with suppress(OSError, ResultsError):
                JobFile.fail(self.out, self.comm.rank)

    def total_env_steps(self, progress: np.ndarray[Any, np.dtype[np.int64]]) -> int:
        """Return the env steps of all ranks, those that have left the job included."""
        return int(progress.sum()) + self.start.retired_env_steps

    def _set_up(self) -> None:
        job, comm, start = self.job, self.comm, self.start
        total_simulators = comm.size * job.environment.num_envs
        with together(comm):
            device = resolve_device(job.device, self.placement.rank_on_node)
            self.simulators = make_simulators(
                job.environment,
                seed=_simulator_seed(job, start.num_restarts, comm.rank, total_simulators),
                num_threads=self.placement.num_threads,
                life_ends_return=job.learner.end_return_on_life_loss,
                num_ranks_on_node=self.placement.num_ranks_on_node,
            )
            convolutions = has_convolutions(job.network, self.simulators.single_observation_space)
            precision = resolve_precision(job.precision, device, convolutions=convolutions)
            self.learner = Learner(
                job,
                self.simulators.single_observation_space,
                self.simulators.single_action_space,
                total_simulators=total_simulators,
                seed=job.seed,
                action_seed=(job.seed, start.num_restarts, comm.rank),
                device=device,
                precision=precision,
            )
            if start.learner is not None:
                self.learner.load_state({**self.learner.state(), **start.learner})
            self.collector = RolloutCollector(
                job, self.simulators, self.learner, num_ranks_on_node=self.placement.num_ranks_on_node
            )
        num_parameters = self.learner.z.size
        with together(comm):
            # Each rank's sum of sizes must be the same network, or messages would not fit.
            sizes = comm.allgather(num_parameters)
            if len(set(sizes)) > 1:
                raise UserError(f"the ranks have networks of different sizes: {sorted(set(sizes))} parameters")
        topology = topology_of(job.gossip.method, job.gossip.topology, comm.size)
        self.mailboxes = Mailboxes(comm, topology, num_parameters)
        self.mailboxes.progress[:] = start.progress
        self.allreduce = AllReduce(comm) if job.gossip.method == "allreduce" else None
        self.mixing = UniformAverage() if job.gossip.method == "gala" else PushSum(job.gossip.weight_floor, lerp)
        if isinstance(self.mixing, PushSum):
            self.mixing.weight = start.weight
        self.gossip = Gossip(self.mailboxes, self.mixing, all_peers=job.gossip.peers == "all")
        self._open_files(num_parameters, precision, device)
        self.returns: deque[tuple[float, float]] = deque(maxlen=100)
        # Without any exchange no rank hears of the others' steps: each takes an equal part of what is left.
        left = job.total_env_steps - self.total_env_steps(start.progress)
        self.own_budget = self.env_steps + math.ceil(left / comm.size)
        if comm.rank == 0:
            log.info("%s, %s; %s parameters", precision, device, f"{num_parameters:,}")
        _say_placements(comm, self.placement)
        comm.Barrier()
        self.started_s = time.monotonic()

    def _open_files(self, num_parameters: int, precision: str, device: str) -> None:
        job, comm, start = self.job, self.comm, self.start
        hostnames = comm.gather(self.placement.hostname)
        with together(comm):
            self.sketch = Sketch(job.record.sketch_size, num_parameters)
            gpus = device.startswith("cuda")
            self.energy = EnergyMeter(gpus=gpus) if self.placement.rank_on_node == 0 else None
            try:
                self.writer = RankWriter(
                    self.out / f"rank-{comm.rank:04d}.h5",
                    rank=comm.rank,
                    thinning=job.record.every_updates,
                    sketch=self.sketch,
                    attributes={
                        "hostname": self.placement.hostname,
                        "num_threads": self.placement.num_threads,
                        "cpus": sorted(self.placement.cpus),
                        "out_peers": self.mailboxes.topology.out_peers(comm.rank),
                        "rank_on_node": self.placement.rank_on_node,
                        "energy_unread": "\n".join(self.energy.unread) if self.energy is not None else "",
                    },
                    resume_at=start.position,
                    restart=None
                    if start.position is None
                    else Restart(
                        update=self.update,
                        time_s=start.time_s,
                        reason=start.reason,
                        weights_restarted=start.weights_restarted,
                    ),
                )
                if hostnames is not None:
                    attributes = {
                        "job_toml": dump_job(job),
                        "argv": list(self.argv),
                        "num_restarts": start.num_restarts,
                        "hostnames": hostnames,
                        "num_parameters": num_parameters,
                        "precision": precision,
                        "device": device,
                        **{f"environment_{key}": value for key, value in self.simulators.description.items()},
                        **_versions(),
                    }
                    JobFile.create(self.out, attributes, comm.size)
            except OSError as error:
                raise UserError(f"{self.out}: cannot be written: {error.strerror or error}") from error
        if self.energy is not None:
            # So the files tell where counting began again, whatever the counts before and after come to.
            self.writer.write_energy(start.time_s, self.placement.hostname, dict.fromkeys(self.energy.sources, 0.0))
        if start.num_restarts and start.reason.startswith("resumed on"):
            replace_set(self.out, self._state(exact=False), comm)

    def _loop(self, caught: list[int], display: Display | None) -> None:
        job = self.job
        flush_due_s = time.monotonic() + _FLUSH_PERIOD_S
        sketch_due_s = 0.0
        norm_every = _STEP_NORM_EVERY if self.learner.z.size > _FEW_PARAMETERS else 1
        laps, record_s = _Laps(), 0.0
        while not self._is_to_stop(caught):
            rollout, episodes = self.collector.collect()
            self.update += 1
            self.env_steps += rollout.num_valid
            self.mailboxes.progress[self.comm.rank] = self.env_steps
            rate = self.learner.learning_rate(min(1.0, self._total_known() / job.total_env_steps))

            laps.lap_s()
            losses = self.learner.compute_gradient(rollout)
            learn_s = laps.lap_s()
            if self.allreduce is not None:
                self._average_gradients(rollout.num_valid, stop=bool(caught))
            gossip_s = laps.lap_s()
            grad_norm = self.learner.apply_gradient(rate)
            # A pass over all parameters: of many, made now and then.
            keeps_norm = self.update % (norm_every * job.record.every_updates) == 0
            step_norm = self.learner.step_norm(rate) if keeps_norm else math.nan
            learn_s += laps.lap_s()
            now_s = self._job_time_s()
            message_age_s = self.gossip.step(self.learner.z, self.update, now_s)
            gossip_s += laps.lap_s()
            self.learner.refresh()
            learn_s += laps.lap_s()

            self.writer.write_update(
                update=self.update,
                env_steps=self.env_steps,
                time_s=now_s,
                policy_loss=losses.policy_loss,
                value_loss=losses.value_loss,
                entropy=losses.entropy,
                grad_norm=grad_norm,
                step_norm=step_norm,
                learning_rate=rate,
                weight=self.mixing.weight,
                **self._counts(),
                message_age_s=message_age_s,
                env_s=self.collector.env_s,
                act_s=self.collector.act_s,
                learn_s=learn_s,
                gossip_s=gossip_s,
                record_s=record_s,
            )
            for episode in episodes:
                self.returns.append((now_s, episode.episodic_return))
                self.writer.write_episode(
                    episodic_return=episode.episodic_return,
                    length=episode.length,
                    env_steps=self.env_steps,
                    time_s=now_s,
                    simulator=episode.simulator,
                )
            if now_s >= sketch_due_s:
                # The same times on every rank, whatever its speed: distances are between parameters of one moment.
                sketch_due_s = (now_s // job.record.sketch_every_s + 1) * job.record.sketch_every_s
                self.writer.write_sketch(self.update, now_s, self.sketch(self.learner.z))
                edges = self.gossip.sent, self.gossip.received, self.gossip.skipped
                self.writer.write_edges(self.update, now_s, self.mailboxes.topology.hops, *edges)
            if self.energy is not None and self.energy.due:
                self.writer.write_energy(now_s, self.placement.hostname, self.energy.counted_j())
            if time.monotonic() >= flush_due_s:
                self.writer.flush()
                flush_due_s = time.monotonic() + _FLUSH_PERIOD_S
            if self.update % job.checkpoint.every_updates == 0:
                self._save(exact=False)
            if job.checkpoint.keep_every_updates and self.update % job.checkpoint.keep_every_updates == 0:
                save_checkpoint(checkpoint_path(self.out, self.comm.rank, self.update), self._state(exact=False))
            if display is not None and display.due:
                display.update(self._total_known(), _mean([value for _, value in self.returns]))
            record_s = laps.lap_s()

    def _average_gradients(self, num_samples: int, *, stop: bool) -> None:
        assert self.allreduce is not None
        self.allreduce.average(self.learner.gradient, num_samples, self.env_steps, stop=stop)
        self.mailboxes.progress[:] = self.allreduce.progress

    def _total_known(self) -> int:
        return self.total_env_steps(self.mailboxes.progress)

    def _budget_is_spent(self) -> bool:
        if self.job.gossip.method == "none":
            return self.env_steps >= self.own_budget
        return self._total_known() >= self.job.total_env_steps

    def _is_to_stop(self, caught: list[int]) -> bool:
        """Whether this rank ends its loop. The first to see a reason tells all, so that they end together."""
        if self.allreduce is not None:
            # Only what all ranks learnt in the same allreduce may end the loop, or the others would wait in the next.
            return self.allreduce.stop or self._budget_is_spent()
        if self.mailboxes.stop_announced:
            return True
        if caught or (self._budget_is_spent() and self.job.gossip.method != "none"):
            self.mailboxes.announce_stop()
            return True
        return self._budget_is_spent()

    def _job_time_s(self) -> float:
        return self.start.time_s + time.monotonic() - self.started_s

    def _counts(self) -> dict[str, int]:
        return {
            "sent": self.counters["sent"] + int(self.gossip.sent.sum()),
            "received": self.counters["received"] + int(self.gossip.received.sum()),
            "skipped": self.counters["skipped"] + int(self.gossip.skipped.sum()),
        }

    def _state(self, *, exact: bool) -> dict[str, Any]:
        return {
            "num_ranks": self.comm.size,
            "num_restarts": self.start.num_restarts,
            "exact": exact,
            "time_s": self._job_time_s() if hasattr(self, "started_s") else self.start.time_s,
            "weight": self.mixing.weight,
            "counters": {"update": self.update, "env_steps": self.env_steps, **self._counts()},
            "position": self.writer.position()._asdict(),
            "learner": self.learner.state(),
        }

    def _save(self, *, exact: bool) -> None:
        save_checkpoint(checkpoint_path(self.out, self.comm.rank), self._state(exact=exact))

    def _end(self) -> Outcome:
        """Drain, save and sum up. Collective over comm."""
        comm = self.comm
        elapsed_s = time.monotonic() - self.started_s
        # Taken before the drain, whose last averaging brings the ranks closer than they are while they train.
        z_while_training = self.learner.z.copy()
        self.gossip.drain(self.learner.z)
        self.learner.refresh()
        weights = comm.allgather(self.mixing.weight)
        assert abs(sum(weights) - comm.size) < 1e-9 * comm.size, f"push-sum weights sum to {sum(weights)}"
        self._save(exact=True)
        if self.energy is not None:
            self.writer.write_energy(self._job_time_s(), self.placement.hostname, self.energy.counted_j())
        self.writer.close()
        self.mailboxes.free()
        self.simulators.close()
        progress = np.array(comm.allgather(self.env_steps), dtype=np.int64)
        env_steps = self.total_env_steps(progress)
        # A signal may come while the last update meets the budget, and another rank may have caught it.
        status = "finished" if env_steps >= self.job.total_env_steps else "stopped"
        recent = sorted(pair for pairs in comm.allgather(list(self.returns)) for pair in pairs)[-100:]
        mean = z_while_training / comm.size
        comm.Allreduce(MPI.IN_PLACE, mean)
        distance = max(comm.allgather(float(np.linalg.norm(z_while_training - mean))))
        outcome = Outcome(
            status=status,
            env_steps=env_steps,
            steps_per_s=(env_steps - self.total_env_steps(self.start.progress)) / elapsed_s,
            mean_return=_mean([value for _, value in recent]),
            messages=comm.allreduce(self._counts()["sent"]),
            weights=(min(weights), max(weights), sum(weights)),
            distance=distance,
            relative_distance=distance / float(np.linalg.norm(mean)),
        )
        if comm.rank == 0:
            JobFile.set_status(self.out, status)
        comm.Barrier()
        return outcome


def _say_placements(comm: MPI.Intracomm, placement: Placement) -> None:
    """Say on rank 0 where all ranks run, those that run alike in one line. Collective over comm."""
    ranks_by_place: dict[str, list[str]] = {}
    for rank, text in enumerate(comm.gather(str(placement)) or ()):
        ranks_by_place.setdefault(text, []).append(str(rank))
    for text, ranks in ranks_by_place.items():
        log.info("rank%s %s on %s", "s" * (len(ranks) > 1), ", ".join(ranks), text)


class _Laps:
    """A stopwatch for the phases of an update."""

    def __init__(self) -> None:
        self._from_s = time.monotonic()

    def lap_s(self) -> float:
        """Return the seconds since the last call."""
        before_s, self._from_s = self._from_s, time.monotonic()
        return self._from_s - before_s


def _claim(out: Path, *, resume: bool) -> int:
    """Make sure the folder is this job's alone, and return the descriptor that holds the claim. Local.

    Raises:
        UserError: The folder holds something else, holds nothing to resume, cannot be written, or is in use.
    """
    try:
        if resume:
            if not (out / "job.h5").exists():
                raise UserError(f"{out}: no run to resume there: job.h5 is missing")
        else:
            out.mkdir(parents=True, exist_ok=True)
            left_over = [] if (out / "job.h5").exists() else [*_rank_files(out), out / _LOCK, out / "job.h5.part"]
            if set(out.iterdir()) - set(left_over):
                raise UserError(f"{out}: not empty; add --resume to go on with its run, or choose another --out")
        descriptor = os.open(out / _LOCK, os.O_CREAT | os.O_RDWR, 0o644)
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"{out}: in use by a job that is still running") from None
    except OSError:
        # Some file systems know no locks; the job can run there all the same.
        log.warning("%s: its file system has no locks: nothing keeps two jobs from writing there", out)
    if not resume:
        for path in _rank_files(out):
            path.unlink()
    return descriptor


def _rank_files(out: Path) -> list[Path]:
    """Return what a start that was cut short leaves: without a job.h5, rank files have no rows yet."""
    return list(out.glob("rank-[0-9]*.h5*"))


def _catch_signals() -> list[int]:
    """Collect from now on the signals that ask a job to save and stop; the loop looks once an update. Local.

    They stay caught until the process ends, so that a second one cannot cut the saving short.
    """
    caught: list[int] = []

    def catch(number: int, frame: FrameType | None) -> None:
        caught.append(number)

    for number in _STOP_SIGNALS:
        signal.signal(number, catch)
    return caught


def _simulator_seed(job: Job, num_restarts: int, rank: int, total_simulators: int) -> int:
    """Return the seed of a rank's first simulator; its i-th has this seed plus i.

    All simulators of a job have consecutive seeds, so no two share one. A restart moves the whole block, for the same
    seeds would replay the same episodes.
    """
    first = np.random.SeedSequence([job.seed, num_restarts]).generate_state(1, np.uint32)[0]
    return int(first) % (2**31 - total_simulators) + rank * job.environment.num_envs


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")


def _versions() -> dict[str, str]:
    versions = {f"{package.replace('-', '_')}_version": version(package) for package in _PACKAGES}
    library = " ".join(MPI.Get_library_version().rstrip("\0").split())
    return {
        **versions,
        "python_version": platform.python_version(),
        "mpi_library": library[:200],
        "git_commit": _git_commit(),
    }


def _git_commit() -> str:
    """Return the commit of the checkout this package runs from, or '' if it is installed without one."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
