"""The Job: everything that defines a run. Knows neither MPI nor torch, so that a login node reads it at once.

`settings` is the tree of what a user can set, `text` how a job file becomes it and how its faults are told, `shipped`
the jobs that come with this package. What a setting does to a run stands in the rooms that take it.
"""

from galampi.job.settings import Environment, Gossip, Job, Network, fields
from galampi.job.shipped import find_job, shipped_jobs
from galampi.job.text import allowed, dump_job, load_job, parse_job

__all__ = [
    "Environment",
    "Gossip",
    "Job",
    "Network",
    "allowed",
    "dump_job",
    "fields",
    "find_job",
    "load_job",
    "parse_job",
    "shipped_jobs",
]
