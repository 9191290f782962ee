"""Runs written row by row, for those who follow them."""

from pathlib import Path

from galampi.results import JobFile, Position, RankWriter, Restart, UpdateRow


def new_run(path: Path, num_ranks: int = 1, job_toml: str = "") -> Path:
    JobFile.create(path, {"job_toml": job_toml}, num_ranks)
    return path


def write_rows(writer: RankWriter, updates, weight: float, start_s: float = 0.0) -> None:
    """Write rows of updates, each with an episode and a reading of 10 W, all of one weight."""
    for update in updates:
        time_s, env_steps = start_s + update, 80 * update
        own = {"update": update, "env_steps": env_steps, "time_s": time_s, "weight": weight}
        writer.write_update(UpdateRow(**{**dict.fromkeys(UpdateRow.__annotations__, 0), **own}))
        write_episode(writer, update, weight, time_s)
        writer.write_energy(time_s, "node-1", {"package-0": 10 * time_s})
    writer.flush()


def write_episode(writer: RankWriter, update: int, weight: float, time_s: float) -> None:
    writer.write_episode(episodic_return=weight, length=1, env_steps=80 * update, time_s=time_s, simulator=0)


def resumed(run: Path, update: int, rank: int = 0) -> RankWriter:
    """Resume a run from a checkpoint after an update."""
    restart = Restart(update=update, time_s=float(update), reason="test", weights_restarted=True)
    path = run / f"rank-{rank:04}.h5"
    return RankWriter(path, rank=rank, resume_at=Position(update, update, 0), restart=restart)
