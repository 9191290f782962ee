"""How long a test may take before it is taken for a deadlock: many times what a slow machine needs."""

DEADLOCK_S = 600
