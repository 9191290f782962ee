"""Program: Sample Factory's asynchronous PPO on the same game.

With its own settings for Atari, but for one pass over each sample, as A2C makes. Runs in an environment that has Sample
Factory and need not have galampi: `python sf_appo.py SETTINGS`, SETTINGS being JSON: `num_workers`, `num_envs` of each,
`warm_up_s` and `seconds`. Prints one line of JSON.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version

# Registers the games, in the processes too that Sample Factory starts, which import this file.
import ale_py  # noqa: F401

_ROLLOUT = 32
_FRAME_SKIP = 4
_TRAIN = "train"


def train() -> int:
    """Train by Sample Factory's own program."""
    from sf_examples.atari.train_atari import main as train_atari

    return int(train_atari())


def main() -> None:
    """Train for a while, and read from what it prints how many frames it has learnt from."""
    settings = json.loads(sys.argv[1])
    limit_s = settings["warm_up_s"] + settings["seconds"]
    num_samples = settings["num_workers"] * settings["num_envs"] * _ROLLOUT
    with tempfile.TemporaryDirectory() as folder:
        options = {
            "algo": "APPO",
            "env": "atari_pong",
            "experiment": "bench",
            "train_dir": folder,
            "device": "cpu",
            "num_workers": settings["num_workers"],
            "num_envs_per_worker": settings["num_envs"],
            "rollout": _ROLLOUT,
            "batch_size": num_samples,
            "num_batches_per_epoch": 1,
            "num_epochs": 1,
            "set_workers_cpu_affinity": False,
            "train_for_seconds": round(2 * limit_s + 60),
        }
        command = [sys.executable, __file__, _TRAIN, *(f"--{name}={value}" for name, value in options.items())]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )
        try:
            steps_per_s = _steps_per_s(process, settings["warm_up_s"], settings["seconds"])
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    print(json.dumps({"steps_per_s": steps_per_s, "version": version("sample-factory")}), flush=True)


def _steps_per_s(process: subprocess.Popen[str], warm_up_s: float, seconds: float) -> float:
    """Return the env steps a second between two of its lines, the first after the warm-up."""
    assert process.stdout is not None
    first_s: float | None = None
    begun: tuple[float, int] | None = None
    last = ""
    for line in process.stdout:
        last = line
        # The first line that counts comes when all simulators have started.
        if not (found := re.search(r"Total num frames: (\d+)", line)) or found[1] == "0":
            continue
        now_s, num_steps = time.monotonic(), int(found[1]) // _FRAME_SKIP
        first_s = now_s if first_s is None else first_s
        if begun is None and now_s - first_s >= warm_up_s:
            begun = now_s, num_steps
        elif begun is not None and now_s - begun[0] >= seconds:
            return (num_steps - begun[1]) / (now_s - begun[0])
    raise SystemExit(f"Sample Factory ended before its time: {last.strip()}")


if __name__ == "__main__":
    if sys.argv[1] == _TRAIN:
        del sys.argv[1]
        sys.exit(train())
    main()
