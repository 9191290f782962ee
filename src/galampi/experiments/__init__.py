"""Experiments: a plan that is written first, its runs, what is kept of them, and what they come to.

`plan` is what was planned; `running` trains what a plan lacks, with `faults` that hurt runs on schedule and `outside`,
another library's learner; `record` keeps of each run what the numbers need, `outcome` is what they come to, `picture`
draws it. `speed` has the plans that measure and train nothing.
"""
