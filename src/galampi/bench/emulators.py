"""Program: step a vector of emulators with random actions on one core, without a learner.

Started as `python -m galampi.bench.emulators SETTINGS`, SETTINGS being JSON: `core`, `num_envs` and `seconds`. Prints a
line when it is ready, reads the Unix time at which to start, the same for all that shall run together, and prints one
line of JSON.
"""

from __future__ import annotations

import json
import os
import sys
import time

import numpy as np


def main() -> None:
    """Count the steps of a stretch of time."""
    settings = json.loads(sys.argv[1])
    os.sched_setaffinity(0, {settings["core"]})

    from galampi.environments.vector import make_simulators
    from galampi.job import Environment

    num_envs = settings["num_envs"]
    environment = Environment(id="ALE/Pong-v5", num_envs=num_envs)
    seed = settings["core"] * num_envs
    simulators = make_simulators(environment, seed=seed, num_threads=1, life_ends_return="auto")
    simulators.reset()
    rng = np.random.default_rng(seed)

    def step() -> None:
        simulators.step(rng.integers(6, size=num_envs))

    step()
    print("ready", flush=True)
    start_at = float(sys.stdin.readline())
    while time.time() < start_at:
        step()
    num_steps, start_s = 0, time.monotonic()
    while (elapsed_s := time.monotonic() - start_s) < settings["seconds"]:
        step()
        num_steps += num_envs
    print(json.dumps({"steps_per_s": num_steps / elapsed_s}))
    simulators.close()


if __name__ == "__main__":
    main()
