"""Check, under the launcher and on the nodes of a job, what the job will need.

Every check is collective: all ranks take part, rank 0 reports. Each is short; none writes anything but a small file
that it removes again.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import h5py
import numpy as np

from galampi.errors import ResultsError, UserError
from galampi.job import Job
from galampi.launched import launched_rank
from galampi.results.files import create, open_for_reading

if TYPE_CHECKING:
    from mpi4py import MPI

_SHARED_MEMORY = Path("/dev/shm")
_MEASURE_S = 2.0
_MOST_PAIRS = 120
_MOST_SKEW_S = 0.5
_SLOW_PUT_BYTES_A_S = 1e8
_TYPICAL_PARAMETERS = 1_700_000
_SLOW_FLUSH_S = 1.0
_TRIAL_FORMAT = "galampi-doctor"

State = Literal["ok", "warning", "failed"]


@dataclass(frozen=True)
class Finding:
    """What one check came to.

    Attributes:
        check: Its name.
        state: `ok`, `warning` or `failed`.
        text: What was found.
        advice: What to do about it; empty if all is well.
        figures: What was measured, for `--json`.
    """

    check: str
    state: State
    text: str
    advice: str = ""
    figures: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        """Write it as one line, or two with advice."""
        line = f"{self.state:<8} {self.check:<12} {self.text}"
        return f"{line}\n{'':<22}{self.advice}" if self.advice else line


def examine(job: Job, out: Path, *, as_json: bool) -> int:
    """Run every check and print what was found. Collective over the ranks the launcher started.

    Args:
        job: The job that is to run here.
        out: Folder its run will be in, or one that exists above it.
        as_json: Print one JSON list instead of lines.

    Returns:
        0 if nothing failed, else 1; the same on every rank.
    """
    strangers = _strangers()
    if strangers is not None:
        # Every process is alone: only the launcher's first speaks.
        if launched_rank() == 0:
            if as_json:
                _print_json([strangers])
            else:
                print(strangers, flush=True)
        return 1
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    findings = []
    for finding in _findings(job, out, comm):
        findings.append(finding)
        if comm.rank == 0 and not as_json:
            print(finding, flush=True)
    if comm.rank == 0:
        if as_json:
            _print_json(findings)
        else:
            counts = Counter(finding.state for finding in findings)
            print(f"{counts['ok']} ok, {_plural(counts['warning'], 'warning')}, {counts['failed']} failed", flush=True)
    failed: bool = comm.bcast(any(finding.state == "failed" for finding in findings))
    return int(failed)


def _findings(job: Job, out: Path, comm: MPI.Intracomm) -> Iterator[Finding]:
    """Run the checks one after the other. Collective over comm; what rank 0 gets counts."""
    yield _check_library(comm)
    yield from _check_placement(comm)
    yield _check_singleton(comm)
    speed, num_parameters = _check_speed(job, comm)
    yield speed
    if num_parameters is not None:
        yield _check_window(job, comm, num_parameters)
    yield _check_leftovers(comm)
    yield _check_network(comm, 4 * (num_parameters or _TYPICAL_PARAMETERS))
    yield _check_clocks(comm)
    yield from _check_files(out, comm)
    yield _check_gpus(job, comm)
    yield _check_energy(comm)


def _print_json(findings: Sequence[Finding]) -> None:
    print(json.dumps([asdict(finding) for finding in findings]), flush=True)


def _plural(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"


def _mebibytes(num_bytes: float) -> str:
    return f"{num_bytes / 2**20:,.{0 if num_bytes >= 1e8 else 2}f} MiB"


def _strangers() -> Finding | None:
    """Whether the launcher and the MPI library do not know each other, so that every process is alone. Local."""
    from mpi4py import MPI

    from galampi.placement import refuse_singletons

    try:
        refuse_singletons(MPI.COMM_WORLD)
    except UserError as error:
        pmi = "pmix" if "Open MPI" in MPI.Get_library_version() else "pmi2"
        by_srun = "SLURM_STEP_ID" in os.environ
        how = f"srun used --mpi={os.environ.get('SLURM_MPI_TYPE', 'none')}; " if by_srun else ""
        advice = f"{how}under srun use --mpi={pmi} (`srun --mpi=list` names what the site has), else mpirun"
        return Finding("launch", "failed", str(error), advice)
    return None


def _check_library(comm: MPI.Intracomm) -> Finding:
    from mpi4py import MPI

    from galampi.placement import library_name

    levels = {
        MPI.THREAD_SINGLE: "single",
        MPI.THREAD_FUNNELED: "funneled",
        MPI.THREAD_SERIALIZED: "serialized",
        MPI.THREAD_MULTIPLE: "multiple",
    }
    names = Counter(comm.allgather((library_name(), MPI.Query_thread())))
    text = "; ".join(f"{name}, threads {levels[level]}" for name, level in names)
    if len(names) > 1:
        return Finding("mpi", "failed", text, "the nodes have different MPI libraries: load the same modules on all")
    if MPI.Query_thread() != MPI.THREAD_MULTIPLE:
        advice = "messages between nodes will move only inside updates; an MPI with MPI_THREAD_MULTIPLE does better"
        return Finding("mpi", "warning", text, advice)
    return Finding("mpi", "ok", text)


def _check_placement(comm: MPI.Intracomm) -> Iterator[Finding]:
    from galampi.placement import place

    placements = comm.allgather(place(comm))
    per_node = Counter(placement.hostname for placement in placements)
    each = ", ".join(f"{name}: {count}" for name, count in per_node.items())
    text = f"{_plural(comm.size, 'rank')} on {_plural(len(per_node), 'node')}: {each}"
    yield Finding("ranks", "ok", text, figures={"ranks_by_node": dict(per_node)})
    text = "; ".join(dict.fromkeys(str(placement) for placement in placements))
    if any(len(placement.cpus) < placement.num_sharing for placement in placements):
        advice = "the ranks are more than their cores: fewer ranks a node, --cpus-per-task=1, or mpirun --bind-to none"
        yield Finding("binding", "warning", text, advice)
    else:
        yield Finding("binding", "ok", text)


def _check_singleton(comm: MPI.Intracomm) -> Finding:
    """Whether a process that no launcher started runs too, as `python -m galampi` alone does."""
    error = comm.bcast(_singleton_error() if comm.rank == 0 else None)
    if error:
        advice = "jobs of several ranks are not touched by this; start single ones with mpirun -n 1"
        return Finding("singleton", "warning", f"a process without a launcher fails: {error}", advice)
    return Finding("singleton", "ok", "a process without a launcher starts")


def _singleton_error() -> str:
    prefixes = ("PMI", "OMPI_", "PMIX_", "PRTE_", "SLURM_", "HYDRA_", "MPIR_", "MPIEXEC_")
    kept = ("OMPI_ALLOW", "PRTE_ALLOW", "OMPI_MCA_osc")
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(prefixes) or name.startswith(kept)
    }
    code = "from mpi4py import MPI; assert MPI.COMM_WORLD.size == 1"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60, check=False
        )
    except subprocess.TimeoutExpired:
        return "MPI did not start within 60 s"
    return "" if done.returncode == 0 else (done.stderr.strip().splitlines() or ["no message"])[-1]


def _check_speed(job: Job, comm: MPI.Intracomm) -> tuple[Finding, int | None]:
    """Measure simulators and learner, all ranks at once; also returns the number of parameters, if the job starts."""
    import torch

    from galampi.learning import (
        Learner,
        RolloutCollector,
        keep_freed_memory,
        make_simulators,
        resolve_device,
        resolve_precision,
    )
    from galampi.placement import place, together

    placement = place(comm)
    torch.set_num_threads(placement.num_threads)
    keep_freed_memory()
    try:
        with together(comm):
            device = resolve_device(job.device, placement.rank_on_node)
            precision = resolve_precision(job.precision, device)
            simulators = make_simulators(
                job.environment,
                seed=1 + comm.rank * job.environment.num_envs,
                num_threads=placement.num_threads,
                life_ends_return=job.learner.end_return_on_life_loss,
                num_ranks_on_node=placement.num_ranks_on_node,
            )
            learner = Learner(
                job,
                simulators.single_observation_space,
                simulators.single_action_space,
                total_simulators=comm.size * job.environment.num_envs,
                seed=job.seed,
                action_seed=(job.seed, comm.rank),
                device=device,
                precision=precision,
            )
            collector = RolloutCollector(job, simulators, learner, num_ranks_on_node=placement.num_ranks_on_node)
    except UserError as error:
        return Finding(
            "speed", "failed", f"the job does not start: {error}", "mend the job, or ask for other nodes"
        ), None
    env_steps, env_s = 0, 0.0
    comm.Barrier()
    began_s = time.monotonic()
    while time.monotonic() - began_s < _MEASURE_S:
        rollout, _ = collector.collect()
        learner.compute_gradient(rollout)
        learner.apply_gradient(1e-6)
        learner.refresh()
        env_steps += rollout.num_valid
        env_s += collector.env_s
    elapsed_s = time.monotonic() - began_s
    simulators.close()
    alone, learning = np.array(comm.allgather((env_steps / env_s, env_steps / elapsed_s))).T
    text = (
        f"emulators alone {np.median(alone):,.0f} env steps/s a rank; with learning {learning.min():,.0f} to "
        f"{learning.max():,.0f} a rank, {learning.sum():,.0f} in all: {job.total_env_steps:,} take about "
        f"{_duration(job.total_env_steps / learning.sum())} ({device}, {precision}, {learner.z.size:,} parameters)"
    )
    figures = {"emulator_steps_per_s": alone.tolist(), "learner_steps_per_s": learning.tolist()}
    if learning.min() < 0.5 * np.median(learning):
        slow = comm.allgather(placement.hostname)[int(learning.argmin())]
        advice = f"a rank on {slow} is less than half as fast as the others; they will not wait for it, but look at it"
        return Finding("speed", "warning", text, advice, figures), learner.z.size
    return Finding("speed", "ok", text, figures=figures), learner.z.size


def _duration(seconds: float) -> str:
    for unit, name in ((3600, "hours"), (60, "minutes")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:,.0f} {name}"
    return f"{seconds:,.0f} seconds"


def _check_window(job: Job, comm: MPI.Intracomm, num_parameters: int) -> Finding:
    """Allocate the mailboxes that the job will have. A memory model other than unified shows here too."""
    from galampi import gossip

    topology = gossip.topology_of(job.gossip.method, job.gossip.topology, comm.size)
    needed = _mebibytes(4 * num_parameters * len(topology.hops))
    reason = job.gossip.topology if topology.hops or comm.size == 1 else f"method {job.gossip.method}"
    text = f"{needed} of mailboxes a rank ({reason}), unified memory"
    room = shutil.disk_usage(_SHARED_MEMORY).free if _SHARED_MEMORY.is_dir() else None
    rooms = [free for free in comm.allgather(room) if free is not None]
    if rooms:
        text += f"; {_SHARED_MEMORY} has {_mebibytes(min(rooms))} free"
    try:
        gossip.Mailboxes(comm, topology, num_parameters).free()
    except UserError as error:
        if str(_SHARED_MEMORY) in str(error):
            advice = f"ask for a larger {_SHARED_MEMORY} (containers: --shm-size), or fewer ranks a node"
        else:
            advice = "use another MPI library: the windows of MPICH and Open MPI from PyPI are unified"
        return Finding("window", "failed", str(error), advice)
    return Finding("window", "ok", text)


def _check_leftovers(comm: MPI.Intracomm) -> Finding:
    """Shared memory of killed jobs of this user that nobody maps any more."""
    maps = ""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            maps += (process / "maps").read_text(errors="replace")
        except OSError:
            continue
    num_bytes = 0
    for path in _SHARED_MEMORY.glob("mpich_shm_*"):
        try:
            if path.stat().st_uid == os.getuid() and str(path) not in maps:
                num_bytes += path.stat().st_size
        except OSError:
            continue
    from mpi4py import MPI

    most, name = max(comm.allgather((num_bytes, MPI.Get_processor_name())))
    if most:
        text = f"{_mebibytes(most)} on {name} left in {_SHARED_MEMORY} by jobs that were killed"
        return Finding(
            "leftovers", "warning", text, f"remove your {_SHARED_MEMORY}/mpich_shm_* when none of your jobs runs"
        )
    return Finding("leftovers", "ok", f"nothing of killed jobs in {_SHARED_MEMORY}")


def _check_network(comm: MPI.Intracomm, message_bytes: int) -> Finding:
    """Measure Put and message latency between pairs of nodes, or two ranks of the only one. Collective over comm.

    All pairs of up to 16 nodes; of more, some in which every node appears.
    """
    from mpi4py import MPI

    if comm.size == 1:
        return Finding("network", "ok", "one rank: no messages")
    names = [f"rank {rank} on {name}" for rank, name in enumerate(comm.allgather(MPI.Get_processor_name()))]
    node = comm.Split_type(MPI.COMM_TYPE_SHARED)
    leaders = [rank for rank, is_leader in enumerate(comm.allgather(node.rank == 0)) if is_leader]
    node.Free()
    between = "nodes" if len(leaders) > 1 else "ranks of the node"
    ends = leaders if len(leaders) > 1 else [0, 1]
    pairs = _choose_pairs(ends)
    window = MPI.Win.Allocate(message_bytes, 1, comm=comm)
    window.Lock_all(MPI.MODE_NOCHECK)
    payload = np.zeros(message_bytes, dtype=np.uint8)
    token = np.zeros(1, dtype=np.int64)
    measured = []
    for a, b in pairs:
        comm.Barrier()
        if comm.rank == a:
            put_s, latency_s = [], []
            for _ in range(20):
                began_s = time.perf_counter()
                comm.Send(token, b, 1)
                comm.Recv(token, b, 1)
                latency_s.append((time.perf_counter() - began_s) / 2)
            for _ in range(5):
                began_s = time.perf_counter()
                window.Put(payload, b)
                window.Flush(b)
                put_s.append(time.perf_counter() - began_s)
            measured.append((message_bytes / min(put_s), min(latency_s), names[a], names[b]))
        elif comm.rank == b:
            for _ in range(20):
                comm.Recv(token, a, 1)
                comm.Send(token, a, 1)
        # Ranks wait inside MPI, so a Put that needs its target's help gets it.
        comm.Barrier()
    window.Unlock_all()
    window.Free()
    results = [one for of_rank in comm.allgather(measured) for one in of_rank]
    slowest, longest = min(results), max(results, key=lambda result: result[1])
    num_pairs = len(ends) * (len(ends) - 1) // 2
    counted = f"{len(pairs):,} of " if len(pairs) < num_pairs else ""
    text = (
        f"{counted}{_plural(num_pairs, 'pair')} of {between}: Put of {_mebibytes(message_bytes)} at least "
        f"{slowest[0] / 1e9:.2f} GB/s, latency at most {longest[1] * 1e6:,.0f} us"
    )
    if len(results) > 1:
        text += f" (slowest: {slowest[2]} to {slowest[3]}, {longest[2]} to {longest[3]})"
    names_of = ("put_bytes_per_s", "latency_s", "from", "to")
    figures = {"pairs": [dict(zip(names_of, result, strict=True)) for result in results]}
    # A small message is all latency.
    if slowest[0] < _SLOW_PUT_BYTES_A_S and message_bytes > 1 << 20:
        advice = "slow: is MPI on the fast network? (UCX_NET_DEVICES, FI_PROVIDER); --json has every pair"
        return Finding("network", "warning", text, advice, figures)
    return Finding("network", "ok", text, figures=figures)


def _choose_pairs(ends: Sequence[int]) -> list[tuple[int, int]]:
    """Return the pairs to measure: all of few ends; of many, some in which every end appears. Local.

    Those farthest apart in the list come first, for they are likely to be the most switches apart. The pairs of one
    distance go round all ends, and half of them, rounded up, of the greatest distance reach every end.
    """
    num_ends = len(ends)
    pairs = []
    for distance in range(num_ends // 2, 0, -1):
        # At half way round the second half would repeat the first.
        for i in range(num_ends // 2 if 2 * distance == num_ends else num_ends):
            a, b = sorted((i, (i + distance) % num_ends))
            pairs.append((ends[a], ends[b]))
    return pairs[: max(_MOST_PAIRS, (num_ends + 1) // 2)]


def _check_clocks(comm: MPI.Intracomm) -> Finding:
    """Compare all ranks' clocks, each with rank 0's by the quickest of some round trips. Collective over comm."""
    offsets_s = [0.0]
    for rank in range(1, comm.size):
        if comm.rank == 0:
            trips = []
            for _ in range(5):
                sent_s = time.time()
                theirs_s = comm.sendrecv(None, dest=rank, source=rank)
                back_s = time.time()
                trips.append((back_s - sent_s, theirs_s - (sent_s + back_s) / 2))
            offsets_s.append(min(trips)[1])
        elif comm.rank == rank:
            for _ in range(5):
                comm.recv(source=0)
                comm.send(time.time(), dest=0)
    skew_s = comm.bcast(max(offsets_s) - min(offsets_s))
    text = f"clocks at most {skew_s * 1e3:.1f} ms apart"
    figures = {"skew_s": skew_s}
    if skew_s > _MOST_SKEW_S:
        advice = (
            "times of files and in logs, and how long ago a run wrote (status, watch), will be wrong; "
            "what runs record will not, for it counts from their start: tell your site (NTP)"
        )
        return Finding("clocks", "warning", text, advice, figures)
    return Finding("clocks", "ok", text, figures=figures)


def _check_files(out: Path, comm: MPI.Intracomm) -> Iterator[Finding]:
    """Try on the run's file system what a run does there: HDF5 with SWMR, locks, renames, reading from another rank."""
    folder = out.absolute()
    while not folder.exists():
        folder = folder.parent
    where = f"{folder} ({_file_system(folder)})"
    elsewhere = "choose a folder on a file system that all nodes share"
    if len(set(comm.allgather(str(folder)))) > 1:
        text = f"{out.absolute()} is not on a file system that every rank sees; rank 0 would write in {where}"
        yield Finding("files", "failed", text, elsewhere)
        return
    trial = _try_files(folder / f".galampi-doctor-{comm.bcast(os.getpid())}.h5", comm)
    if trial.unwritten is not None:
        advice = "choose another folder with --out"
        yield Finding("files", "failed", f"{where}: HDF5 cannot write: {trial.unwritten}", advice)
        return
    if trial.blind:
        text = f"{where}: what rank 0 writes there is not there for {trial.blind[0]}"
        more = f" and {len(trial.blind) - 1} more" if len(trial.blind) > 1 else ""
        yield Finding("files", "failed", text + more, elsewhere)
        return
    troubles = [
        (
            trial.unread,
            "a file in use cannot be read by the last rank",
            "runs can be read once they end",
        ),
        (trial.unlocked, "no locks", "nothing will keep two jobs from one folder (Lustre: mount with -o flock)"),
        (
            trial.unlocked_hdf5,
            "HDF5's own locks, which runs do without, fail",
            "for other programs that read the files: export HDF5_USE_FILE_LOCKING=BEST_EFFORT",
        ),
        (
            f"{trial.flush_s:.1f} s" if trial.flush_s > _SLOW_FLUSH_S else None,
            "an HDF5 flush is slow",
            "choose a scratch file system with --out",
        ),
    ]
    found = [Finding("files", "warning", f"{where}: {what}: {why}", advice) for why, what, advice in troubles if why]
    text = f"{where}: HDF5 flush {trial.flush_s * 1e3:.1f} ms; locks and reading while writing work"
    yield from found or [Finding("files", "ok", text, figures={"flush_s": trial.flush_s})]


@dataclass(frozen=True)
class _FileTrial:
    """What came of a file that rank 0 wrote; a reason is None if there was no trouble.

    Attributes:
        unwritten: Why HDF5 could not write it.
        blind: Ranks for which it was not there.
        unread: Why the last rank could not read it.
        unlocked: Why files could not be locked or renamed.
        unlocked_hdf5: Why HDF5 could not open a file with the locks it takes by itself.
        flush_s: Time its flush took.
    """

    unwritten: str | None
    blind: Sequence[str] = ()
    unread: str | None = None
    unlocked: str | None = None
    unlocked_hdf5: str | None = None
    flush_s: float = 0.0


def _try_files(path: Path, comm: MPI.Intracomm) -> _FileTrial:
    """Write a file on rank 0, look at it from all, and remove it. Collective over comm; rank 0's word counts."""
    from mpi4py import MPI

    file = None
    try:
        file, flush_s, unwritten = _write_hdf5(path) if comm.rank == 0 else (None, 0.0, None)
        unwritten = comm.bcast(unwritten)
        if unwritten is not None:
            return _FileTrial(unwritten)
        views = comm.allgather((path.exists(), MPI.Get_processor_name()))
        blind = [f"rank {rank} on {name}" for rank, (sees, name) in enumerate(views) if not sees]
        last = comm.size - 1
        unread = comm.bcast(_read_hdf5(path) if comm.rank == last else None, root=last)
        unlocked, unlocked_hdf5 = (_lock_and_rename(path), _lock_hdf5(path)) if comm.rank == 0 else (None, None)
        return _FileTrial(None, blind, unread, unlocked, unlocked_hdf5, flush_s)
    finally:
        if comm.rank == 0:
            _discard(file, path)


def _discard(file: h5py.File | None, path: Path) -> None:
    # On a full disk closing fails too.
    with suppress(OSError, RuntimeError):
        if file is not None:
            file.close()
    with suppress(OSError):
        path.unlink()


def _write_hdf5(path: Path) -> tuple[h5py.File | None, float, str | None]:
    """Return a file in use, how long its flush took, and why there is none. Local."""
    file = None
    try:
        file = create(path, _TRIAL_FORMAT)
        values = file.create_dataset("values", data=np.arange(8), maxshape=(None,))
        file.swmr_mode = True
        began_s = time.perf_counter()
        values.resize((16,))
        values[8:] = 1
        values.flush()
    except (OSError, RuntimeError) as error:
        _discard(file, path)
        number = error.errno if isinstance(error, OSError) else None
        return None, 0.0, os.strerror(number) if number else str(error).splitlines()[0]
    return file, time.perf_counter() - began_s, None


def _read_hdf5(path: Path) -> str | None:
    """Return why a file in use cannot be read, if so. Local."""
    try:
        with open_for_reading(path, _TRIAL_FORMAT) as reader:
            return None if reader["values"].shape[0] >= 8 else "stale data"
    except (OSError, ResultsError) as error:
        return str(error).splitlines()[0]


def _lock_hdf5(path: Path) -> str | None:
    """Return why HDF5 cannot open a file with its own locks, if so. Local."""
    # A file of its own: no process can open one with and without locks at a time.
    locked = Path(f"{path}.locked")
    try:
        h5py.File(locked, "w").close()
    except OSError as error:
        return str(error).splitlines()[0]
    finally:
        locked.unlink(missing_ok=True)
    return None


def _lock_and_rename(path: Path) -> str | None:
    """Return why a file cannot be locked or renamed, if so. Local."""
    lock_path, renamed = Path(f"{path}.lock"), Path(f"{path}.renamed")
    try:
        with lock_path.open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        lock_path.replace(renamed)
    except OSError as error:
        return os.strerror(error.errno or 0)
    finally:
        lock_path.unlink(missing_ok=True)
        renamed.unlink(missing_ok=True)
    return None


def _file_system(folder: Path) -> str:
    """Return the type of the file system that holds a folder, from the longest mount point above it."""
    best, kind = "", "unknown"
    try:
        lines = Path("/proc/mounts").read_text().splitlines()
    except OSError:
        return kind
    for line in lines:
        _, point, name, *_ = line.split()
        if folder.is_relative_to(point) and len(point) >= len(best):
            best, kind = point, name
    return kind


def _check_gpus(job: Job, comm: MPI.Intracomm) -> Finding:
    import torch
    from mpi4py import MPI

    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    nodes = comm.allgather((MPI.Get_processor_name(), num_gpus))
    if not any(count for _, count in nodes):
        if job.device == "cuda":
            advice = "ask for one (--gres=gpu:1) and see that torch is a CUDA build"
            return Finding("gpu", "failed", "device is cuda, and no rank sees a GPU", advice)
        return Finding("gpu", "ok", "none; the network runs on the processor")
    ranks_by_node, gpus_by_node = Counter(name for name, _ in nodes), dict(nodes)
    text = ", ".join(f"{name}: {gpus_by_node[name]} for {count} ranks" for name, count in ranks_by_node.items())
    pipe = Path(os.environ.get("CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps"))
    has_mps = comm.allreduce(int((pipe / "control").exists())) == comm.size
    if has_mps:
        return Finding("gpu", "ok", f"{text}; MPS runs")
    if any(count > max(1, gpus_by_node[name]) for name, count in ranks_by_node.items()):
        return Finding("gpu", "warning", f"{text}; no MPS: ranks take turns", "slurm/mps.sbatch starts MPS")
    return Finding("gpu", "ok", text)


def _check_energy(comm: MPI.Intracomm) -> Finding:
    """Whether something here can tell the energy a job takes."""
    from galampi.results import EnergyMeter

    meter = EnergyMeter(gpus=True)
    everywhere = set.intersection(*comm.allgather(set(meter.counted_j())))
    if everywhere:
        return Finding("energy", "ok", f"can be measured: {', '.join(sorted(everywhere))}")
    text = f"cannot be measured: {'; '.join(meter.unread)}"
    return Finding("energy", "warning", text, "reports will say so; ask your site if you need it")
