"""The contestants: each is started as a program of its own, on the same cores, and returns what it measured.

Knows how to launch them; nothing of what their numbers are compared with.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from galampi.analysis.statistics import effective_step
from galampi.bench.program import Program
from galampi.bench.timed_train import Disturbance, TimedTraining
from galampi.errors import UserError
from galampi.launch.mpirun import mpirun
from galampi.results import Run, open_run

Sample = dict[str, Any]

PONG_BYTES = 4 * 1_687_719
"""Parameters of the 32-64-64-512 network with six actions, in float32: the message of Pong."""
SETTLING_S = 2.0
"""Time after the first update that does not count."""
SB3_SETTINGS = ((16, False), (16, True), (64, True))
"""Simulators, and whether they are processes: those of which Stable-Baselines3's best is taken."""
SAMPLE_FACTORY_SETTINGS = (8, 16)
"""Simulators of each of Sample Factory's two workers: those of which its best is taken."""
_MOST_NODES = 5
_AGENT = """#!/bin/sh
host=$1
shift
exec unshare --map-root-user --uts sh -c "hostname $host && { $*; }"
"""
_BEFORE_GOSSIP = ("env_s", "act_s", "learn_s", "record_s")


def cores() -> list[int]:
    """Return the two cores that everything is measured on, of two if possible that share no execution units.

    Raises:
        UserError: There is one, or this system lets nobody choose.
    """
    if not hasattr(os, "sched_setaffinity"):
        raise UserError("bench binds what it measures to two cores, which this system does not let it")
    first, *others = sorted(os.sched_getaffinity(0))
    if not others:
        raise UserError("bench needs two cores; this process may use one")
    siblings = _siblings(first)
    return [first, next((core for core in others if core not in siblings), others[0])]


def off_shared_memory(folder: Path) -> dict[str, str]:
    """Return the environment that keeps ranks off shared memory, so that one machine shows what a network does.

    MPICH is told so. Open MPI keeps the windows of one node in shared memory whatever it is told, so each rank gets a
    node of its own: the agent that shall start a daemon there starts it here, under another host name.

    Args:
        folder: Takes the agent and the list of nodes; they must be there while ranks start.
    """
    agent, nodes = folder / "agent.sh", folder / "nodes"
    agent.write_text(_AGENT)
    agent.chmod(0o755)
    nodes.write_text("".join(f"node-{number} slots=1\n" for number in range(_MOST_NODES)))
    return {
        "MPIR_CVAR_NOLOCAL": "1",
        # One machine's cores are at both ends: whoever waits must let the other end run.
        "OMPI_MCA_mpi_yield_when_idle": "1",
        "PRTE_MCA_plm_ssh_agent": str(agent),
        "PRTE_MCA_prte_default_hostfile": str(nodes),
        "PRTE_MCA_rmaps_default_mapping_policy": "ppr:1:node",
    }


def training(
    num_ranks: int,
    seconds: float,
    *,
    precision: str,
    method: str = "push-sum",
    disturbance: Disturbance | None = None,
) -> Sample:
    """Train Pong with 16 simulators a rank.

    Args:
        num_ranks: Ranks; they share the two cores in turn, one rank takes the first.
        seconds: Time that counts.
        precision: float32 or bfloat16.
        method: As `gossip.method`.
        disturbance: What holds ranks up.

    Returns:
        `steps_per_s` of all ranks, `phases_s` of an update (mean over the ranks, with `rest_s`), `pss_bytes` of the
        largest rank, `first_update_s` of the last, counted from the command, and the `effective_step`.

    Raises:
        UserError: It failed, or was too slow to be measured.
    """
    with tempfile.TemporaryDirectory(prefix="galampi-bench-") as folder:
        out = Path(folder) / "run"
        job = {
            "environment.id": "ALE/Pong-v5",
            "environment.num_envs": "16",
            "total_env_steps": str(10**9),
            "precision": precision,
            "device": "cpu",
            "gossip.method": method,
        }
        settings = TimedTraining(
            launched_at=time.time(),
            settling_s=SETTLING_S,
            seconds=seconds,
            cores=cores(),
            disturbance=asdict(disturbance or Disturbance()),
            folder=folder,
            out=str(out),
            job=job,
        )
        _run([*mpirun(num_ranks), *_program("timed_train", asdict(settings))], seconds)
        ranks = [json.loads((Path(folder) / f"measured-{rank}.json").read_text()) for rank in range(num_ranks)]
        run = open_run(out)
        steps_per_s, phases_s = _rates(run)
        moved = effective_step(run)
    return {
        "steps_per_s": steps_per_s,
        "phases_s": phases_s,
        # The other ranks may hear of the stop before their own time is over.
        "pss_bytes": max(rank.get("pss_bytes", 0) for rank in ranks),
        "first_update_s": max(rank["first_update_s"] for rank in ranks),
        "effective_step": moved,
    }


def emulators(seconds: float) -> Sample:
    """Step two vectors of 16 emulators, one on each core, at the same time; `steps_per_s` is their sum.

    Raises:
        UserError: They failed.
    """
    with ExitStack() as stack:
        programs = [
            stack.enter_context(Program(_program("emulators", {"core": core, "num_envs": 16, "seconds": seconds})))
            for core in cores()
        ]
        for program in programs:
            program.wait_for("ready")
        start_at = f"{time.time() + 1.0}\n"
        return {"steps_per_s": sum(program.finish(seconds, start_at)[0]["steps_per_s"] for program in programs)}


def sb3(python: Path, num_envs: int, subprocesses: bool, seconds: float) -> Sample:
    """Train with Stable-Baselines3's A2C on both cores; returns `steps_per_s` and its `version`.

    Raises:
        UserError: It failed.
    """
    return _peer(python, "sb3_a2c.py", seconds, {"num_envs": num_envs, "subprocesses": subprocesses, "warm_up_s": 3.0})


def sample_factory(python: Path, num_envs: int, seconds: float) -> Sample:
    """Train with Sample Factory's APPO, two workers on both cores; returns `steps_per_s` and its `version`.

    Args:
        python: Of an environment that has it.
        num_envs: Simulators of each worker.
        seconds: Time that counts, and at least two of the reports that it makes every five seconds.

    Raises:
        UserError: It failed.
    """
    return _peer(python, "sf_appo.py", seconds, {"num_workers": 2, "num_envs": num_envs, "warm_up_s": 5.0})


def _peer(python: Path, script: str, seconds: float, settings: Mapping[str, Any]) -> Sample:
    """Run a program of another environment on both cores."""
    affinity = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores())
    try:
        program = str(Path(__file__).with_name(script))
        (sample,) = _run([str(python), program, json.dumps({**settings, "seconds": seconds})], seconds)
    finally:
        os.sched_setaffinity(0, affinity)
    return sample


def exchange(num_ranks: int, sizes_bytes: Sequence[int], seconds: float, *, network: bool = False) -> list[Sample]:
    """Gossip without learning; one sample for each size, as `exchange.py` measures it.

    Raises:
        UserError: It failed.
    """
    settings = {"cores": cores(), "sizes_bytes": list(sizes_bytes), "seconds": seconds, "network": network}
    program = _program("exchange", settings)
    # Copies and puts, Allreduce, steps, messages; a step over a network may take a second.
    longest_s = len(sizes_bytes) * 5 * seconds
    if not network:
        return _run([*mpirun(num_ranks), *program], longest_s)
    with tempfile.TemporaryDirectory(prefix="galampi-nodes-") as folder:
        # Its nodes say where ranks go.
        return _run([mpirun(num_ranks)[0], "-n", str(num_ranks), *program], longest_s, off_shared_memory(Path(folder)))


def pong_exchange(num_ranks: int, seconds: float) -> Sample:
    """Gossip with messages of the size that Pong's have, without learning."""
    (sample,) = exchange(num_ranks, [PONG_BYTES], seconds)
    return sample


def _rates(run: Run) -> tuple[float, dict[str, float]]:
    """Return env steps a second of all ranks after they have settled, and the mean time of each phase of an update."""
    total, phases = 0.0, []
    for rank in run.ranks:
        rows = rank.updates.read("time_s", "env_steps", "gossip_s", *_BEFORE_GOSSIP)
        counted = np.flatnonzero(rows["time_s"] >= rows["time_s"][0] + SETTLING_S)
        if len(counted) < 2:
            raise UserError(f"{rank.path.name} has {len(counted)} updates to measure; give more --seconds")
        time_s, steps = rows["time_s"][counted], rows["env_steps"][counted]
        total += float(steps[-1] - steps[0]) / float(time_s[-1] - time_s[0])
        # A row's time is that before its gossip: between two rows lie the gossip of the first, the rest of the second.
        mean_s = {phase: float(rows[phase][counted[1:]].mean()) for phase in _BEFORE_GOSSIP}
        mean_s["gossip_s"] = float(rows["gossip_s"][counted[:-1]].mean())
        mean_s["rest_s"] = float(np.diff(time_s).mean()) - sum(mean_s.values())
        phases.append(mean_s)
    return total, {phase: float(np.mean([each[phase] for each in phases])) for phase in phases[0]}


def _siblings(core: int) -> set[int]:
    """Return the cores that are threads of the same one, itself included, as far as the system tells."""
    try:
        text = Path(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list").read_text()
    except OSError:
        return {core}
    ranges = (part.split("-") for part in text.strip().split(","))
    return {each for ends in ranges for each in range(int(ends[0]), int(ends[-1]) + 1)}


def _program(name: str, settings: Mapping[str, Any]) -> list[str]:
    return [sys.executable, "-m", f"galampi.bench.{name}", json.dumps(settings)]


def _run(command: Sequence[str], seconds: float, environment: Mapping[str, str] | None = None) -> list[Sample]:
    with Program(command, environment) as program:
        return program.finish(seconds)
