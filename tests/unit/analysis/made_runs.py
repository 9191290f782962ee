"""Runs made up for the tests of what reads them."""

from pathlib import Path

import numpy as np

from galampi.job import dump_job, parse_job
from galampi.results import JobFile, RankWriter, Sketch, UpdateRow, open_run

NUM_PARAMETERS = 500


def make_run(
    out: Path,
    *,
    num_ranks: int = 2,
    num_updates: int = 200,
    settings: dict[str, str] | None = None,
    status: str = "finished",
    sketches: bool = True,
    energy_j: dict[int, dict[str, float]] | None = None,
    unread: str = "RAPL: no zones",
    attributes: dict[str, str] | None = None,
    hostname: str = "node-1",
    slope: float = 1.0,
    spread: float = 0.1,
    lost_after: dict[str, int] | None = None,
) -> Path:
    """Write a run whose returns rise and whose ranks stay about 0.1 from their mean.

    Args:
        out: Its folder.
        num_ranks: Ranks.
        num_updates: Updates of each rank, one a tenth of a second, of 80 env steps.
        settings: Of the job.
        status: What job.h5 says.
        sketches: Whether there are sketches.
        energy_j: What sources count over the run, by the rank that reads them.
        unread: What the readers could not read.
        attributes: Further ones of job.h5.
        hostname: Of every rank.
        slope: Rise of the return with each update.
        spread: Distance of each rank's parameters to those all have in common.
        lost_after: Update after which a source of energy is read no more.
    """
    job = parse_job("", "test", {"environment.id": "CartPole-v1", "name": "made", **(settings or {})})
    JobFile.create(out, {"job_toml": dump_job(job), "argv": ["galampi"], **(attributes or {})}, num_ranks)
    rng = np.random.default_rng(job.seed)
    sketch = Sketch(64, NUM_PARAMETERS) if sketches else None
    readers = energy_j or {}
    for rank in range(num_ranks):
        common = np.ones(NUM_PARAMETERS)
        is_reader = rank in readers or (not readers and rank == 0)
        with RankWriter(
            out / f"rank-{rank:04d}.h5",
            rank=rank,
            thinning=job.record.every_updates,
            sketch=sketch,
            attributes={
                "hostname": hostname,
                "rank_on_node": 0 if is_reader else 1,
                "energy_unread": unread if is_reader else "",
                "out_peers": [(rank + 1) % num_ranks] if num_ranks > 1 else [],
            },
        ) as writer:
            writer.write_energy(0.0, hostname, dict.fromkeys(readers.get(rank, {}), 0.0))
            for update in range(1, num_updates + 1):
                time_s = update / 10
                values = dict.fromkeys(
                    ("policy_loss", "value_loss", "entropy", "grad_norm", "learning_rate", "weight"), 0.5
                )
                seconds = {"env_s": 0.04, "act_s": 0.02, "learn_s": 0.03, "gossip_s": 0.005, "record_s": 0.001}
                row = UpdateRow(
                    update=update,
                    env_steps=80 * update,
                    time_s=time_s,
                    step_norm=0.2 if update % 8 == 0 else np.nan,
                    sent=update,
                    received=update - 1,
                    skipped=0,
                    message_age_s=0.1,
                    step_scale=1.0,
                    step_weight=1.0,
                    moved=0.9 * update,
                    **values,
                    **seconds,
                )
                writer.write_update(row)
                episodic_return = slope * update + rng.normal()
                writer.write_episode(
                    episodic_return=episodic_return, length=80, env_steps=80 * update, time_s=time_s, simulator=0
                )
                if sketch is not None and update % 10 == 0:
                    z = common + rng.normal(size=NUM_PARAMETERS) * spread / np.sqrt(NUM_PARAMETERS)
                    writer.write_sketch(update, time_s, sketch(z))
                    hops = [1] if num_ranks > 1 else []
                    writer.write_edges(
                        update, time_s, hops, [update] * len(hops), [update - 1] * len(hops), [0] * len(hops)
                    )
                if update % 100 == 0 and rank in readers:
                    share = update / num_updates
                    lost = [name for name, last in (lost_after or {}).items() if update > last]
                    counted = {name: joules * share for name, joules in readers[rank].items() if name not in lost}
                    writer.write_energy(time_s, hostname, counted)
    if status != "running":
        run = open_run(out)
        JobFile.create(out, {**run.attributes, "status": status}, num_ranks)
    return out


def shrink(out: Path, num_ranks: int) -> Path:
    """Make `job.h5` say that a run goes on with its first ranks alone, as a resume on fewer leaves it."""
    run = open_run(out)
    JobFile.create(out, {"job_toml": run.job_toml, "status": run.status}, num_ranks)
    return out
