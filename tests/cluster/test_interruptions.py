"""What becomes of runs that Slurm interrupts, in all the ways it has (interruptions.py)."""

from launching import assert_sound
from libraries import srun_type

from galampi.results import open_run


def test_a_run_goes_on_to_its_end(begun, case) -> None:
    folder, ended = begun[case]
    job = ended.result()
    log = "".join(path.read_text() for path in folder.glob("*.log"))
    assert job["JobState"] == "COMPLETED", log
    assert job["ExitCode"] == "0:0"
    assert_sound(folder / "run", num_ranks=2, status="finished")
    run = open_run(folder / "run")
    assert sum(int(rank.updates["env_steps"][-1]) for rank in run.ranks) >= 4000
    event, _, launcher = case
    for rank in run.ranks:
        # Slurm's pmi2 and MPICH now and then fail to start; then the job comes back once more, the run does not.
        restarts = len(rank.restarts["restart"])
        # The limit stays short until the restart has been seen: on a busy machine it comes once more before that.
        assert restarts >= 1 if event == "limit" else restarts == 1, log
        assert restarts <= int(job["Restarts"]) <= restarts + 4, log
        assert rank.restarts["update"][0] > 0
    reason = run.ranks[0].restarts["reason"][0]
    print(case, reason)
    if event == "limit" or (event not in ("node", "launcher") and launcher == "srun"):
        # Slurm told the ranks, and gave them the time to save all.
        assert reason == "resumed from checkpoints saved after a drain"
    if event == "limit":
        of_mpich = srun_type() == "pmi2"
        assert f"{'SIGTERM' if launcher == 'mpirun' and of_mpich else 'SIGUSR2'}: saving" in log
