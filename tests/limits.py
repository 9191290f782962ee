"""The one limit on time: for what would never end. No machine that passes its tests comes near it."""

DEADLOCK_S = 600.0
