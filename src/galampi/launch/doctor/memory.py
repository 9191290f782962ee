"""Memory for the mailboxes, and what killed jobs left behind."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from galampi.errors import UserError
from galampi.job import Job
from galampi.launch.doctor.finding import Finding, mebibytes, plural

if TYPE_CHECKING:
    from mpi4py import MPI

_SHARED_MEMORY = Path("/dev/shm")


def check_window(job: Job, comm: MPI.Intracomm, num_parameters: int) -> Finding:
    """Allocate the mailboxes that the job will have. A memory model other than unified shows here too."""
    from galampi import gossip

    topology = gossip.topology_of(job.gossip.method, job.gossip.topology, comm.size)
    if job.gossip.method == "push-sum":
        try:
            gossip.refuse_silence(topology, job.gossip.weight_floor, all_peers=job.gossip.peers == "all")
        except UserError as error:
            return Finding("window", "failed", str(error), "mend the job: no rank would send a message")
    needed = mebibytes(4 * num_parameters * len(topology.hops))
    reason = job.gossip.topology if topology.hops or comm.size == 1 else f"method {job.gossip.method}"
    text = f"{needed} of mailboxes a rank ({reason}), unified memory"
    room = shutil.disk_usage(_SHARED_MEMORY).free if _SHARED_MEMORY.is_dir() else None
    rooms = [free for free in comm.allgather(room) if free is not None]
    if rooms:
        text += f"; {_SHARED_MEMORY} has {mebibytes(min(rooms))} free"
    try:
        gossip.Mailboxes(comm, topology, num_parameters, form=job.gossip.message).free()
    except UserError as error:
        if str(_SHARED_MEMORY) in str(error):
            advice = f"ask for a larger {_SHARED_MEMORY} (containers: --shm-size), or fewer ranks a node"
        else:
            advice = "use another MPI library: the windows of MPICH and Open MPI from PyPI are unified"
        return Finding("window", "failed", str(error), advice)
    return Finding("window", "ok", text)


def check_leftovers(comm: MPI.Intracomm) -> Finding:
    """Look for what killed jobs of this user left on the nodes. Collective over comm."""
    from mpi4py import MPI

    name = MPI.Get_processor_name()
    most, at = max(comm.allgather((_unmapped_bytes(), name)))
    if most:
        text = f"{mebibytes(most)} on {at} left in {_SHARED_MEMORY} by jobs that were killed"
        advice = f"remove your {_SHARED_MEMORY}/mpich_shm_* when none of your jobs runs"
        return Finding("leftovers", "warning", text, advice)
    folder = tempfile.gettempdir()
    most, at = max(comm.allgather((_dead_launches(Path(folder)), name)))
    if most:
        text = f"{plural(most, 'folder')} of Open MPI on {at} left in {folder} by jobs that were killed"
        advice = f"mpirun fails when it gets the process id of one: remove your {folder}/ompi.* and {folder}/prte*"
        return Finding("leftovers", "warning", text, f"{advice} when none of your jobs runs")
    return Finding("leftovers", "ok", f"nothing of killed jobs in {_SHARED_MEMORY} and {folder}")


def _unmapped_bytes() -> int:
    """Return the shared memory of this user's MPICH that no process maps any more. Local."""
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
    return num_bytes


def _dead_launches(folder: Path) -> int:
    """Count this user's folders of Open MPI launchers, named by process ids, that no longer run. Local.

    PMIx up to version 5 takes files in such a folder for those of a running launcher, and gives up: "The PMIx server's
    listener thread failed to start".
    """
    num_folders = 0
    found: list[Path] = []
    with suppress(OSError):  # On some nodes nobody may list it.
        found = list(folder.iterdir())
    for path in found:
        launcher, _, process_id = path.name.partition(".")
        if launcher in ("ompi", "prte", "prted") and process_id.isdigit() and not Path("/proc", process_id).exists():
            with suppress(OSError):
                num_folders += path.stat().st_uid == os.getuid()
    return num_folders
