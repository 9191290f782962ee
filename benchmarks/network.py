"""Env steps a second of four ranks on two hosts, by the link between the hosts and the form of the messages.

    python benchmarks/network.py [--seconds 30] [--out FILE]

Linux, root. The built-in job: messages of 6.75 MB. The hosts are network namespaces of this
machine, which they share with what passes their packets on: compare the rows of one link with each other, nothing else.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from galampi import open_run
from galampi.bench.hosts import Hosts
from galampi.ranks.processor import processor

LINKS = {
    "as fast as it goes": {},
    "1 Gbit/s": {"bytes_per_s": 125e6},
    "1 Gbit/s, 5 ms": {"bytes_per_s": 125e6, "delay_s": 0.005},
    "5 ms, 1 % lost": {"delay_s": 0.005, "loss": 0.01},
}
EXCHANGES = {
    "push-sum, full": ["--gossip.message", "full"],
    "push-sum, bfloat16": ["--gossip.message", "bfloat16"],
    "push-sum, int8": ["--gossip.message", "int8"],
    "allreduce": ["--gossip.method", "allreduce"],
}
SETTLING_S = 8.0


def measure(link: dict[str, float], exchange: list[str], seconds: float) -> dict[str, float]:
    """Train, and return what the files say of the time after the start."""
    with tempfile.TemporaryDirectory() as folder, Hosts(2, Path(folder), **link) as hosts:
        out = Path(folder) / "run"
        limit = ["--max-time-s", str(SETTLING_S + seconds), "--total-env-steps", "1000000000"]
        job = ["train", "quick-start", *exchange, *limit, "--out", str(out)]
        command = hosts.mpirun(2, [sys.executable, "-m", "galampi", *job])
        done = subprocess.run(command, capture_output=True, text=True, timeout=20 * seconds, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(job)}: {done.stderr[-2000:]}")
        tables = [rank.updates.read() for rank in open_run(out).ranks]
    steps_per_s, gossip_s, ages, received = 0.0, [], [], 0.0
    for rows in tables:
        counted = np.flatnonzero(rows["time_s"] >= SETTLING_S)
        span_s = rows["time_s"][counted[-1]] - rows["time_s"][counted[0]]
        steps_per_s += float(rows["env_steps"][counted[-1]] - rows["env_steps"][counted[0]]) / span_s
        received += int(rows["received"][counted[-1]].sum() - rows["received"][counted[0]].sum()) / len(counted)
        gossip_s.append(rows["gossip_s"][counted].mean())
        ages.append(np.nanmean(rows["message_age_s"][counted]) if received else np.nan)
    return {
        "steps_per_s": steps_per_s,
        "gossip_s": float(np.mean(gossip_s)),
        "received_an_update": received / len(tables),
        "message_age_s": float(np.mean(ages)),
    }


def main() -> None:
    """Measure every form over every link."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30.0, help="time that counts of each row [30]")
    parser.add_argument("--out", type=Path, help="JSON file of the table")
    arguments = parser.parse_args()
    rows = []
    print(processor())
    for name, link in LINKS.items():
        for exchange, settings in EXCHANGES.items():
            measured = measure(link, settings, arguments.seconds)
            rows.append({"link": name, "exchange": exchange, **measured})
            rate, age_ms = measured["steps_per_s"], 1e3 * measured["message_age_s"]
            told = f"{1e3 * measured['gossip_s']:6.2f} ms an update, {measured['received_an_update']:.2f} messages"
            print(f"{name:20} {exchange:20} {rate:7.0f} steps/s  gossip {told}, {age_ms:.0f} ms old", flush=True)
            if arguments.out is not None:
                record = {"processor": processor(), "date": time.strftime("%Y-%m-%d"), "rows": rows}
                arguments.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
