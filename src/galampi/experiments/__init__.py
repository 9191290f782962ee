"""Experiments: a plan that is written first, its runs, what is kept of them, and what they come to.

`plan` is what was planned, `running` trains what a plan lacks, `record` keeps of each run what the numbers need.
"""
