"""Check, under the launcher and on the nodes of a job, what the job will need.

Every check is collective: all ranks take part, rank 0 reports. Each is short; none writes anything but a small file
that it removes again.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from galampi.job import Job
from galampi.launch.doctor.exchange import check_messages
from galampi.launch.doctor.files import check_files
from galampi.launch.doctor.finding import Finding, plural
from galampi.launch.doctor.hardware import check_energy, check_gpus
from galampi.launch.doctor.launcher import check_launch, check_library, check_placement, check_singleton
from galampi.launch.doctor.memory import check_leftovers, check_window
from galampi.launch.doctor.network import check_clocks, check_network
from galampi.launch.doctor.speed import check_speed
from galampi.ranks.launched import launched_rank

if TYPE_CHECKING:
    from mpi4py import MPI

_TYPICAL_PARAMETERS = 1_700_000


def examine(job: Job, out: Path, *, as_json: bool) -> int:
    """Run every check and print what was found. Collective over the ranks the launcher started.

    Args:
        job: The job that is to run here.
        out: Folder its run will be in, or one that exists above it.
        as_json: Print one JSON list instead of lines.

    Returns:
        0 if nothing failed, else 1; the same on every rank.
    """
    strangers = check_launch()
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
    findings: list[Finding] = []

    def tell(finding: Finding) -> None:
        findings.append(finding)
        if comm.rank == 0 and not as_json:
            print(finding, flush=True)

    def tell_all() -> None:
        if as_json:
            _print_json(findings)
        else:
            counts = Counter(finding.state for finding in findings)
            print(f"{counts['ok']} ok, {plural(counts['warning'], 'warning')}, {counts['failed']} failed", flush=True)

    def give_up(finding: Finding) -> None:
        tell(finding)
        tell_all()
        os._exit(1)

    for finding in _findings(job, out, comm):
        tell(finding)
    tell(check_messages(job, comm, give_up if comm.rank == 0 else None))
    if comm.rank == 0:
        tell_all()
    if comm.bcast(findings[-1].state == "failed"):
        comm.Abort(1)
    failed: bool = comm.bcast(any(finding.state == "failed" for finding in findings))
    return int(failed)


def _findings(job: Job, out: Path, comm: MPI.Intracomm) -> Iterator[Finding]:
    """Run all checks but the last one after the other. Collective over comm; what rank 0 gets counts."""
    yield check_library(comm)
    yield from check_placement(comm)
    yield check_singleton(comm)
    speed, num_parameters = check_speed(job, comm)
    yield speed
    if num_parameters is not None:
        yield check_window(job, comm, num_parameters)
    yield check_leftovers(comm)
    yield check_network(comm, 4 * (num_parameters or _TYPICAL_PARAMETERS))
    yield check_clocks(comm)
    yield from check_files(out, comm)
    yield check_gpus(job, comm)
    yield check_energy(comm)


def _print_json(findings: Sequence[Finding]) -> None:
    print(json.dumps([asdict(finding) for finding in findings]), flush=True)
