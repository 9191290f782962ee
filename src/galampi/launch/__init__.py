"""Jobs on a cluster: submission to Slurm, sweeps, what became of them, and the check of a node before the wait.

Submission and status start on a login node at once: they know neither torch nor MPI. `doctor` imports both inside its
functions, for it runs where the job would.
"""
