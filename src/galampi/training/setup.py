"""What a rank of a job is made of.

Owns its parts: simulators, learner and collector, exchange, files; and which seeds they get. `doctor` makes the same
learning parts, to measure them.
"""

from __future__ import annotations

import logging
import math
import pickle
import platform
import subprocess
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mpi4py import MPI

from galampi.environments import Simulators, make_simulators
from galampi.environments.making import seed_global_generators
from galampi.environments.rows import refuse_other_spaces
from galampi.errors import USERS_FAILURES, UserError, os_error_line
from galampi.gossip import (
    SIGNALLED_PATIENCE_S,
    AllReduce,
    Gossip,
    Mailboxes,
    PushSum,
    UniformAverage,
    topology_of,
)
from galampi.gossip.mixing import StepScale
from galampi.job import Job, dump_job, import_modules, imported_sources
from galampi.learning import Learner, RolloutCollector, has_large_convolutions, lerp, resolve_device, resolve_precision
from galampi.policies.stored import checkpoint_path
from galampi.ranks.placement import Placement, together
from galampi.results import (
    EnergyMeter,
    JobFile,
    RankFile,
    RankWriter,
    Restart,
    Sketch,
    save_checkpoint,
    visible_gpus,
)
from galampi.results.folder import holds_rows
from galampi.signals import StopSignals
from galampi.training.checkpoint_set import replace_set
from galampi.training.rank import Rank
from galampi.training.resuming import Start
from galampi.training.silence import Silence

log = logging.getLogger(__name__)

_MOST_ROUNDING = 0.01
"""How far parameters that two processors draw alike may be apart, over their norm. Those drawn otherwise are 1.4."""
_PACKAGES = ("galampi", "torch", "mpi4py", "h5py", "gymnasium", "ale-py", "numpy")


@dataclass(frozen=True)
class Learning:
    """The parts of a rank that learn.

    Attributes:
        simulators: Of this rank.
        learner: With its parameters.
        collector: Of rollouts; it has reset the simulators.
        device: Where the network is.
        precision: In which it computes.
    """

    simulators: Simulators
    learner: Learner
    collector: RolloutCollector
    device: str
    precision: str


def make_learning(job: Job, placement: Placement, rank: int, num_ranks: int, start: Start | None = None) -> Learning:
    """Make the parts of a rank that learn. Local.

    Args:
        job: The settings.
        placement: Where this rank runs.
        rank: Its number.
        num_ranks: Ranks of the job.
        start: Where to go on; None for a new run.

    Raises:
        UserError: The job does not fit the environment, or this node.
    """
    num_restarts = start.num_restarts if start is not None else 0
    # Ranks that exchange nothing are learners of their own.
    num_together = 1 if job.gossip.method == "none" else num_ranks
    torch.set_num_threads(placement.num_torch_threads)
    import_modules(job)
    # After the imports, so that what a module draws when it is imported changes nothing.
    seed_global_generators(job.seed, num_restarts, rank, 1)
    device = resolve_device(job.device, placement.rank_on_node)
    simulators = make_simulators(
        job.environment,
        seed=_simulator_seed(job, num_restarts, rank, num_ranks * job.environment.num_envs),
        num_threads=placement.num_threads,
        life_ends_return=job.learner.end_return_on_life_loss,
        first_number=rank * job.environment.num_envs,
        num_ranks_on_node=placement.num_ranks_on_node,
    )
    convolutions = has_large_convolutions(job.network, simulators.encoding)
    precision = resolve_precision(job.precision, device, convolutions=convolutions)
    learner = Learner(
        job,
        simulators.single_observation_space,
        simulators.single_action_space,
        total_simulators=num_together * job.environment.num_envs,
        seed=job.seed,
        action_seed=(job.seed, num_restarts, rank),
        device=device,
        precision=precision,
    )
    if start is not None and start.learner is not None:
        try:
            learner.load_state({**learner.state(), **start.learner})
        except UserError as error:
            if not start.origin or start.num_restarts:
                raise
            raise UserError(f"{start.origin['origin']}: its policy does not fit this environment: {error}") from None
    collector = RolloutCollector(job, simulators, learner, num_ranks_on_node=placement.num_ranks_on_node)
    return Learning(simulators, learner, collector, device, precision)


def make_rank(
    job: Job,
    out: Path,
    placement: Placement,
    comm: MPI.Intracomm,
    start: Start,
    signals: StopSignals,
) -> Rank:
    """Make a rank. Collective over comm.

    Args:
        job: The settings.
        out: Folder of the run.
        placement: Where this rank runs.
        comm: The ranks of the job.
        start: Where to go on, or begin.
        signals: What may stop it.

    Raises:
        UserError: On every rank: the job does not fit the environment, a node or the folder.
    """
    with together(comm):
        learning = make_learning(job, placement, comm.rank, comm.size, start)
    num_parameters = learning.learner.parameters.size
    _refuse_other_spaces(job, learning.simulators, comm)
    with together(comm):
        _begin_alike(job, learning.learner, comm, start.learner)
    if start.learner is None:
        # Moments can be averaged if their offsets are the same.
        comm.Bcast(learning.learner.moments, root=0)
        learning.learner.refresh()
    hostnames = comm.allgather(placement.hostname)
    silence = Silence(hostnames, comm.rank)
    mailboxes, gossip, allreduce = _make_exchange(job, learning.learner, comm, start, signals)
    gpus = _gpus_of_node(learning.device, placement, comm)
    with together(comm):
        sketch = Sketch(job.record.sketch_size, num_parameters)
        energy = EnergyMeter(gpus=gpus) if placement.rank_on_node == 0 else None
        writer, returns = _open_rank_file(job, out, placement, comm, start, mailboxes, sketch, energy)
    rank = Rank(
        job=job,
        out=out,
        comm=comm,
        placement=placement,
        start=start,
        hostnames=hostnames,
        simulators=learning.simulators,
        learner=learning.learner,
        collector=learning.collector,
        device=learning.device,
        precision=learning.precision,
        mailboxes=mailboxes,
        gossip=gossip,
        allreduce=allreduce,
        silence=silence,
        sketch=sketch,
        energy=energy,
        writer=writer,
        returns=returns,
        update=start.counters["update"],
        env_steps=start.counters["env_steps"],
        # Without any exchange no rank hears of the others' steps: each takes an equal part.
        own_budget=math.ceil(job.total_env_steps / comm.size),
    )
    if start.num_ranks_changed:
        replace_set(out, rank.state(exact=False), comm)
    else:
        with together(comm):
            # A run that has begun has something to resume from, whenever it is killed.
            save_checkpoint(checkpoint_path(out, comm.rank), rank.state(exact=False))
    return rank


def _refuse_other_spaces(job: Job, simulators: Simulators, comm: MPI.Intracomm) -> None:
    """Raise on every rank unless all have the spaces of the first rank's simulators. Collective over comm."""
    own = simulators.single_observation_space, simulators.single_action_space
    words = b""
    with suppress(*USERS_FAILURES):
        # A space of the user's own may be none that can be sent.
        words = pickle.dumps(own)
    words = comm.bcast(words)
    with together(comm):
        try:
            first = pickle.loads(words)
        except USERS_FAILURES:
            first = own
        refuse_other_spaces(job.environment, comm.rank * job.environment.num_envs, own, first)


def _begin_alike(job: Job, learner: Learner, comm: MPI.Intracomm, state: dict[str, Any] | None) -> None:
    """Give a new network the first rank's parameters on all, and its constants. Collective over comm.

    Ranks draw parameters alike, and differ by rounding where their processors do.

    Args:
        job: The settings.
        learner: Of this rank.
        comm: The ranks of the job.
        state: What the learner goes on with; None for a new one.

    Raises:
        UserError: On every rank: the ranks have networks of different sizes, or this one was drawn otherwise.
    """
    constants = learner.constants
    sizes = comm.allgather((learner.z.size, len(constants)))
    if len({size for size, _ in sizes}) > 1:
        raise UserError(f"the ranks have networks of different sizes: {sorted({size for size, _ in sizes})} parameters")
    if len(set(sizes)) > 1:
        raise UserError("the ranks have networks whose constants (buffers) are of different sizes")
    if not all(comm.allgather(state is not None and "constants" in state)):
        # What each draws in a way of its own is one network once all have the first rank's.
        comm.Bcast(constants, root=0)
        learner.constants = constants
    if state is not None:
        return
    first = learner.parameters.copy()
    comm.Bcast(first, root=0)
    if not np.linalg.norm(learner.parameters - first) <= _MOST_ROUNDING * np.linalg.norm(first):
        raise UserError(
            f"network.kind is {job.network.kind!r}, which begins with other parameters on each rank; must draw them "
            "from torch's generator"
        )
    learner.parameters[:] = first


def _make_exchange(
    job: Job, learner: Learner, comm: MPI.Intracomm, start: Start, signals: StopSignals
) -> tuple[Mailboxes, Gossip, AllReduce | None]:
    """Make a rank's mailboxes, its gossip and, if that is the method, its allreduce. Collective.

    Raises:
        UserError: On every rank: there is no room for the mailboxes, or no rank could ever send.
    """
    settings = job.gossip
    mailboxes = Mailboxes(
        comm,
        topology_of(settings.method, settings.topology, comm.size),
        learner.z.size,
        form=settings.message,
        num_exact=learner.moments.size,
    )
    mailboxes.progress[:] = start.progress
    allreduce = None
    if settings.method == "allreduce":
        allreduce = AllReduce(comm, lambda waited_s, own_s: _gives_up(waited_s, own_s, job, signals, mailboxes))
        _make_equal(learner, start, comm)
    mixing = UniformAverage() if settings.method == "gala" else PushSum(settings.weight_floor, lerp)
    if isinstance(mixing, PushSum):
        mixing.weight = start.weight
        mixing.step_scale = StepScale(**start.step_scale)
    with together(comm):
        gossip = Gossip(mailboxes, mixing, all_peers=settings.peers == "all", delay_updates=settings.delay_updates)
    return mailboxes, gossip, allreduce


def begin(rank: Rank, argv: Sequence[str]) -> None:
    """Put the job on record, and begin on all ranks at once. Collective over comm.

    Args:
        rank: This one.
        argv: Command line, for the record.

    Raises:
        UserError: On every rank: the record cannot be written.
    """
    comm = rank.comm
    num_parameters = rank.learner.parameters.size
    with together(comm):
        if comm.rank == 0:
            attributes = {
                "job_toml": dump_job(rank.job),
                "argv": list(argv),
                "num_restarts": rank.start.num_restarts,
                "hostnames": rank.hostnames,
                "num_parameters": num_parameters,
                "precision": rank.precision,
                "device": rank.device,
                "global_generators": "random, numpy.random and torch seeded on every rank",
                **rank.start.origin,
                **{f"environment_{key}": value for key, value in rank.simulators.description.items()},
                "modules": [f"{name} {source}" for name, source in imported_sources(rank.job).items()],
                **_versions(),
            }
            JobFile.create(rank.out, attributes, comm.size)
    if comm.rank == 0:
        for name in _with_means_of_their_own(rank.job):
            log.warning(
                "environment.wrappers: each simulator of %s has running means of its own, which no checkpoint and no "
                "`evaluate` knows; returns are what it makes of them. learner.normalize_observations and "
                "learner.normalize_returns are meant for this",
                name,
            )
        for line in rank.simulators.encoding.guesses:
            log.info("%s", line)
        log.info("%s, %s; %s parameters", rank.precision, rank.device, f"{num_parameters:,}")
    _say_placements(comm, rank.placement)
    comm.Barrier()
    rank.begin()


def _open_rank_file(
    job: Job,
    out: Path,
    placement: Placement,
    comm: MPI.Intracomm,
    start: Start,
    mailboxes: Mailboxes,
    sketch: Sketch,
    energy: EnergyMeter | None,
) -> tuple[RankWriter, deque[tuple[float, float]]]:
    """Open the rank's file, and return with it job time and return of the last episodes it holds. Local."""
    path = out / f"rank-{comm.rank:04d}.h5"
    returns: deque[tuple[float, float]] = deque(maxlen=100)
    if start.position is not None:
        stop = start.position.num_episodes
        rows = RankFile(path, comm.rank).episodes.read("time_s", "return", start=max(0, stop - 100), stop=stop)
        returns.extend(zip(rows["time_s"].tolist(), rows["return"].tolist(), strict=True))
    try:
        if start.num_restarts and start.position is None and path.exists():
            # Of a resume on more ranks that was cut short before this one had a checkpoint.
            if holds_rows(path):
                raise UserError(f"{path}: holds rows that no checkpoint counts; move it away to resume without them")
            path.unlink()
        writer = RankWriter(
            path,
            rank=comm.rank,
            thinning=job.record.every_updates,
            sketch=sketch,
            attributes={
                "hostname": placement.hostname,
                "num_threads": placement.num_threads,
                "cpus": sorted(placement.cpus),
                "out_peers": mailboxes.topology.out_peers(comm.rank),
                "rank_on_node": placement.rank_on_node,
                "energy_unread": "\n".join(energy.unread) if energy is not None else "",
                **({"joined_after_update": start.counters["update"]} if start.position is None else {}),
            },
            resume_at=start.position,
            restart=None
            if start.position is None
            else Restart(
                update=start.counters["update"],
                time_s=start.time_s,
                reason=start.reason,
                weights_restarted=start.weights_restarted,
                changes=start.changes,
            ),
        )
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {os_error_line(error)}") from error
    if energy is not None:
        # So the files tell where counting began again, whatever the counts before and after come to.
        writer.write_energy(start.time_s, placement.hostname, dict.fromkeys(energy.sources, 0.0))
    return writer, returns


def _gpus_of_node(device: str, placement: Placement, comm: MPI.Intracomm) -> list[str] | None:
    """Return the UUIDs of the GPUs that ranks of this node compute on or may; None if none does. Collective."""
    own = placement.hostname, visible_gpus() if device.startswith("cuda") else None
    of_node = [uuids for hostname, uuids in comm.allgather(own) if hostname == placement.hostname and uuids is not None]
    return list(dict.fromkeys(uuid for uuids in of_node for uuid in uuids)) if of_node else None


def _gives_up(waited_s: float, own_s: float, job: Job, signals: StopSignals, mailboxes: Mailboxes) -> bool:
    """Whether an allreduce waits no longer: for a silent rank, a signal, or with another rank."""
    limit_s = SIGNALLED_PATIENCE_S if signals.caught is not None else max(job.gossip.silent_after_s, 2 * own_s)
    return waited_s > limit_s or mailboxes.stop_announced


def _make_equal(learner: Learner, start: Start, comm: MPI.Intracomm) -> None:
    """Begin on every rank with the parameters and the optimizer of the rank that has come farthest. Collective.

    Ranks that average gradients must be equal at every moment, and checkpoints saved on the way are not all of one
    update.
    """
    updates = comm.allgather(start.counters["update"])
    first = int(np.argmax(updates))
    state = learner.state()
    for values in state.values():
        # Random numbers stay each rank's own.
        if values.dtype == np.float32:
            comm.Bcast(values, root=first)
    learner.load_state(state)
    start.counters["update"] = max(updates)


def _simulator_seed(job: Job, num_restarts: int, rank: int, total_simulators: int) -> int:
    """Return the seed of a rank's first simulator; its i-th has this seed plus i.

    All simulators of a job have consecutive seeds, so no two share one. A restart moves the whole block, for the same
    seeds would replay the same episodes.
    """
    first = np.random.SeedSequence([job.seed, num_restarts]).generate_state(1, np.uint32)[0]
    return int(first) % (2**31 - total_simulators) + rank * job.environment.num_envs


def _with_means_of_their_own(job: Job) -> list[str]:
    """Return the wrappers of a job that normalise by what one simulator has seen."""
    return [
        name
        for name in (entry.wrapper for entry in job.environment.wrappers_and_kwargs)
        if name.startswith("gymnasium.wrappers") and name.endswith((":NormalizeObservation", ":NormalizeReward"))
    ]


def _say_placements(comm: MPI.Intracomm, placement: Placement) -> None:
    """Say on rank 0 where all ranks run, those that run alike in one line. Collective over comm."""
    ranks_by_place: dict[str, list[str]] = {}
    for rank, text in enumerate(comm.gather(str(placement)) or ()):
        ranks_by_place.setdefault(text, []).append(str(rank))
    for text, ranks in ranks_by_place.items():
        log.info("rank%s %s on %s", "s" * (len(ranks) > 1), ", ".join(ranks), text)


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
    own = Path(__file__)

    def asked(*words: str) -> str:
        command = ["git", "-C", str(own.parent), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        # A virtual environment may lie in a checkout of something else.
        asked("ls-files", "--error-unmatch", own.name)
        return asked("rev-parse", "HEAD")
    except (OSError, subprocess.CalledProcessError):
        return ""
