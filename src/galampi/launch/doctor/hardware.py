"""GPUs, and counters of energy."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from galampi.job import Job
from galampi.launch.doctor.finding import Finding

if TYPE_CHECKING:
    from mpi4py import MPI


def check_gpus(job: Job, comm: MPI.Intracomm) -> Finding:
    """Count GPUs and the ranks that share them; whether MPS runs. Collective over comm."""
    import torch
    from mpi4py import MPI

    from galampi.results import visible_gpus

    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    # Ranks may see GPUs of their own each, and call all of them the first.
    names = visible_gpus()
    seen = names if len(names) == num_gpus else [str(number) for number in range(num_gpus)]
    nodes = comm.allgather((MPI.Get_processor_name(), seen))
    if not any(gpus for _, gpus in nodes):
        if job.device == "cuda":
            advice = "ask for one (--gres=gpu:1) and see that torch is a CUDA build"
            return Finding("gpu", "failed", "device is cuda, and no rank sees a GPU", advice)
        return Finding("gpu", "ok", "none; the network runs on the processor")
    ranks_by_node: Counter[str] = Counter()
    there: dict[str, set[str]] = {}
    ranks_by_gpu: Counter[tuple[str, str]] = Counter()
    for name, gpus in nodes:
        there.setdefault(name, set()).update(gpus)
        if gpus:
            # As `resolve_device` has them take turns.
            ranks_by_gpu[name, gpus[ranks_by_node[name] % len(gpus)]] += 1
        ranks_by_node[name] += 1
    text = ", ".join(f"{name}: {len(there[name])} for {count} ranks" for name, count in ranks_by_node.items())
    pipe = Path(os.environ.get("CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps"))
    has_mps = comm.allreduce(int((pipe / "control").exists())) == comm.size
    if has_mps:
        return Finding("gpu", "ok", f"{text}; MPS runs")
    if max(ranks_by_gpu.values()) > 1:
        return Finding("gpu", "warning", f"{text}; no MPS: ranks take turns", "slurm/mps.sbatch starts MPS")
    return Finding("gpu", "ok", text)


def check_energy(comm: MPI.Intracomm) -> Finding:
    """Whether something here can tell the energy a job takes. Collective over comm."""
    from galampi.results import EnergyMeter, visible_gpus

    meter = EnergyMeter(gpus=visible_gpus())
    everywhere = set.intersection(*comm.allgather(set(meter.counted_j())))
    if everywhere:
        return Finding("energy", "ok", f"can be measured: {', '.join(sorted(everywhere))}")
    text = f"cannot be measured: {'; '.join(meter.unread)}"
    return Finding("energy", "warning", text, "reports will say so; ask your site if you need it")
