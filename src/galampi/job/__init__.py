"""The Job: everything that defines a run. Knows neither MPI nor torch, so that a login node reads it at once.

`settings` is the tree of what a user can set, `text` how a job file becomes it and how its faults are told, `modules`
what a job names of the user's own code, `shipped` the jobs that come with this package. What a setting does to a run
stands in the rooms that take it.
"""

from galampi.job.modules import (
    find_modules,
    import_again,
    import_module,
    import_modules,
    imported_sources,
    named_modules,
    one_line,
)
from galampi.job.settings import Environment, Gossip, Job, Network, Wrapper, are_equal, by_key, difference_of, fields
from galampi.job.shipped import find_job, shipped_jobs
from galampi.job.text import allowed, as_lists, did_you_mean, dump_job, job_of_run, load_job, parse_job, toml_text

__all__ = [
    "Environment",
    "Gossip",
    "Job",
    "Network",
    "Wrapper",
    "allowed",
    "are_equal",
    "as_lists",
    "by_key",
    "did_you_mean",
    "difference_of",
    "dump_job",
    "fields",
    "find_job",
    "find_modules",
    "import_again",
    "import_module",
    "import_modules",
    "imported_sources",
    "job_of_run",
    "load_job",
    "named_modules",
    "one_line",
    "parse_job",
    "shipped_jobs",
    "toml_text",
]
