"""Check and measure training on one GPU of this machine, and write what was seen into one JSON file.

    python benchmarks/gpu_check.py [--seconds 10] [--out benchmarks/results]

Runs the learner's tests on the GPU; times copies of a parameter vector between it and the host; trains Pong with 1,
2, 4 and 8 ranks on it, in float32 and bfloat16, with and without NVIDIA MPS, and the same on the processor alone;
reads its use and power through NVML meanwhile. Each training run is short: its rate is that after the first third.
Of several GPUs it is the first; CUDA_VISIBLE_DEVICES names another. The file is written anew after each run.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

NUM_PARAMETERS = 1_686_086
"""Of Pong's network."""
RANKS = (1, 2, 4, 8)
ROOT = Path(__file__).parents[1]


class Meter(threading.Thread):
    """Reads use in percent and power in W of the GPU that is measured twice a second, until `stop`."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.samples: list[tuple[int, float]] = []
        self._stopped = threading.Event()

    def run(self) -> None:
        import pynvml

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(os.environ["CUDA_VISIBLE_DEVICES"])
        while not self._stopped.wait(0.5):
            use = pynvml.nvmlDeviceGetUtilizationRates(handle).gpu
            self.samples.append((use, pynvml.nvmlDeviceGetPowerUsage(handle) / 1000))

    def stop(self) -> dict[str, float | None]:
        """Return the medians of the second half, when training is under way."""
        self._stopped.set()
        self.join()
        late = self.samples[len(self.samples) // 2 :]
        use, power = np.median(late, axis=0).tolist() if late else (None, None)
        return {"gpu_use_percent": use, "gpu_power_w": power}


def main() -> int:
    """Run all, printing as it goes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0, help="job time of each training run [10]")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results", help="folder of the result file")
    arguments = parser.parse_args()
    from galampi.results import visible_gpus

    # Before torch looks: the ranks of a run take turns among all GPUs that they see.
    os.environ["CUDA_VISIBLE_DEVICES"] = next(iter(visible_gpus()), "")
    import torch

    if not torch.cuda.is_available():
        print("no GPU here, or NVML (nvidia-ml-py) does not name it", file=sys.stderr)
        return 2
    result: dict[str, Any] = {"machine": _machine(), "tests": _tests(), "copies_ms": _copies(), "training": []}
    print(json.dumps(result, indent=1), flush=True)
    words = re.sub(r"[^a-z0-9]+", "-", result["machine"]["gpu"].lower()).strip("-")
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / f"gpu-{words}.json"

    def train(device: str, num_ranks: int, precision: str, **facts: bool) -> None:
        row = {**_train(device, num_ranks, precision, arguments.seconds), **facts}
        result["training"].append(row)
        path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        print(json.dumps(row), flush=True)

    for num_ranks in RANKS:
        train("cpu", num_ranks, "auto")
    for precision in ("float32", "bfloat16"):
        for num_ranks in RANKS:
            train("cuda", num_ranks, precision, mps=False)
    with _mps() as runs:
        if not runs:
            result["mps"] = "nvidia-cuda-mps-control is not there, or does not start"
        for precision in ("float32", "bfloat16") if runs else ():
            for num_ranks in RANKS:
                train("cuda", num_ranks, precision, mps=True)
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(path)
    return 0


def _machine() -> dict[str, Any]:
    import torch

    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    driver = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "gpu": torch.cuda.get_device_name(0),
        "driver": driver,
        "torch": torch.__version__,
        "cores": len(os.sched_getaffinity(0)),
        "date": time.strftime("%Y-%m-%d"),
    }


def _tests() -> str:
    """Run the learner's tests on the GPU and return pytest's last line."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-rA",
        "-c",
        os.devnull,
        "--rootdir",
        str(ROOT),
        "-p",
        "no:cacheprovider",
    ]
    # Where the networks lie that the tests name; without pyproject.toml pytest does not know.
    paths = [str(ROOT / "tests/unit/learning"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    command.append(str(ROOT / "tests/gpu"))
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    print(done.stdout, done.stderr, flush=True)
    return done.stdout.strip().splitlines()[-1]


def _copies() -> dict[str, float]:
    """Time copies of a parameter vector, up to the GPU and down, from either kind of memory: ms, medians of 50."""
    import torch

    on_gpu = torch.zeros(NUM_PARAMETERS, device="cuda")
    times = {}
    for kind in ("pageable", "pinned"):
        on_host = torch.zeros(NUM_PARAMETERS, pin_memory=kind == "pinned")
        for way, (to, source) in {"up": (on_gpu, on_host), "down": (on_host, on_gpu)}.items():
            each = []
            for _ in range(50):
                torch.cuda.synchronize()
                began_s = time.perf_counter()
                to.copy_(source)
                torch.cuda.synchronize()
                each.append(1e3 * (time.perf_counter() - began_s))
            times[f"{kind} {way}"] = float(np.median(each))
    return times


@contextmanager
def _mps() -> Iterator[bool]:
    """Let the MPS daemon run, and yield whether it does."""
    control = "nvidia-cuda-mps-control"
    runs = shutil.which(control) is not None and subprocess.run([control, "-d"], check=False).returncode == 0
    try:
        yield runs
    finally:
        if runs:
            subprocess.run([control], input="quit\n", text=True, check=False)


def _train(device: str, num_ranks: int, precision: str, seconds: float) -> dict[str, Any]:
    """Train Pong for some seconds and return its rate and where the time of an update went."""
    from galampi.results import open_run

    row: dict[str, Any] = {"device": device, "ranks": num_ranks, "precision": precision}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = ["mpirun", "-n", str(num_ranks), sys.executable, "-m", "galampi", "train"]
        command += [str(ROOT / "jobs/pong.toml"), "--out", str(out), "--quiet"]
        command += ["--device", device, "--precision", precision, "--max-time-s", str(seconds)]
        meter = Meter()
        meter.start()
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds + 120)
        except subprocess.TimeoutExpired:
            return {**row, "error": f"not done after {seconds + 120:.0f} s"}
        finally:
            measured = meter.stop()
        row |= measured if device == "cuda" else {}
        if done.returncode != 0:
            return {**row, "error": (done.stderr.strip() or "?").splitlines()[-1]}
        rates, phases = [], []
        for rank in open_run(out).ranks:
            rows = rank.updates.read("time_s", "env_steps", "env_s", "act_s", "learn_s", "gossip_s", "record_s")
            late = rows["time_s"] > seconds / 3
            time_s, env_steps = rows["time_s"][late], rows["env_steps"][late]
            rates.append((env_steps[-1] - env_steps[0]) / (time_s[-1] - time_s[0]))
            phases.append([1e3 * np.median(rows[name][late]) for name in list(rows)[2:]])
        names = ("env_ms", "act_ms", "learn_ms", "gossip_ms", "record_ms")
        row["env_steps_per_s"] = float(np.sum(rates))
        return row | dict(zip(names, np.mean(phases, axis=0).round(3).tolist(), strict=True))


if __name__ == "__main__":
    sys.exit(main())
