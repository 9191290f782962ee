"""Benchmarks: how fast training and gossip are on this machine, beside their peers and their limits.

`command.py` is the one entry. It starts each contestant as a program of its own, in turns, so that what disturbs the
machine disturbs all of them, and compares pair by pair. `figures.py` says what is compared. The programs:
`timed_train.py` (galampi itself), `emulators.py` (the games without a learner), `sb3_a2c.py` (Stable-Baselines3, in an
environment of its own) and `exchange.py` (gossip and its parts, without learning).
"""
