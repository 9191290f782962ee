"""The launcher and the MPI library: whether they know each other, and where they put the ranks."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from galampi.errors import UserError
from galampi.launch.doctor.finding import Finding, plural
from galampi.ranks.starting import start_mpi

if TYPE_CHECKING:
    from mpi4py import MPI


def check_launch() -> Finding | None:
    """Whether the launcher and the MPI library do not know each other, so that every process is alone. Local."""
    start_mpi()
    from mpi4py import MPI

    from galampi.ranks.placement import refuse_singletons

    try:
        refuse_singletons(MPI.COMM_WORLD)
    except UserError as error:
        pmi = "pmix" if "Open MPI" in MPI.Get_library_version() else "pmi2"
        by_srun = "SLURM_STEP_ID" in os.environ
        how = f"srun used --mpi={os.environ.get('SLURM_MPI_TYPE', 'none')}; " if by_srun else ""
        advice = f"{how}under srun use --mpi={pmi} (`srun --mpi=list` names what the site has), else mpirun"
        return Finding("launch", "failed", str(error), advice)
    return None


def check_library(comm: MPI.Intracomm) -> Finding:
    """Name the MPI library and its level of threads, and whether all ranks have the same. Collective over comm."""
    from mpi4py import MPI

    from galampi.ranks.placement import library_name

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


def check_placement(comm: MPI.Intracomm) -> Iterator[Finding]:
    """Count the ranks of each node, and their cores. Collective over comm."""
    from galampi.ranks.placement import place

    placements = comm.allgather(place(comm))
    per_node = Counter(placement.hostname for placement in placements)
    each = ", ".join(f"{name}: {count}" for name, count in per_node.items())
    text = f"{plural(comm.size, 'rank')} on {plural(len(per_node), 'node')}: {each}"
    yield Finding("ranks", "ok", text, figures={"ranks_by_node": dict(per_node)})
    text = "; ".join(dict.fromkeys(str(placement) for placement in placements))
    if any(placement.num_cores < placement.num_sharing for placement in placements):
        advice = "the ranks are more than their cores: fewer ranks a node, --cpus-per-task=1, or mpirun --bind-to none"
        yield Finding("binding", "warning", text, advice)
    elif any(each.num_torch_threads * each.num_sharing > each.num_cores for each in placements):
        advice = "the threads of torch are more than the cores: unset OMP_NUM_THREADS, or set it to cores over ranks"
        yield Finding("binding", "warning", text, advice)
    else:
        yield Finding("binding", "ok", text)


def check_singleton(comm: MPI.Intracomm) -> Finding:
    """Whether a process that no launcher started runs too, as `python -m galampi` alone does. Collective over comm."""
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
