"""How much energy a node and its GPUs use, by the counters the hardware keeps.

Owns the reading of RAPL (through /sys/class/powercap) and NVML counters. Reads counters only: what cannot be read is
said with the reason, and never estimated. Knows neither MPI nor torch; that there is one reader on a node is the
caller's part.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

POWERCAP = Path("/sys/class/powercap")
# RAPL counters wrap after 262 kJ on most processors, a quarter of an hour at 300 W.
_PERIOD_S = 30.0
_MOST_W = {"package": 600.0, "dram": 100.0}
"""More than a package of processors, or its memory, uses for long."""


@dataclass
class _Counter:
    """A counter that only rises, but for its wraps.

    Attributes:
        name: What it counts.
        read: Its value in `unit_j`.
        unit_j: Joules in one of its units.
        wraps_at: Value after which it begins again at 0; None if it never does.
    """

    name: str
    read: Callable[[], int]
    unit_j: float
    wraps_at: int | None
    _last: int = 0
    _total: int = 0
    _read_s: float = 0.0

    def start(self) -> None:
        """Count from here."""
        self._last, self._total, self._read_s = self.read(), 0, time.monotonic()

    def counted_j(self) -> float:
        """Return what was counted since the start; to be called at least once a wrap.

        Raises:
            OSError: It cannot be read any more, was reset, or may have wrapped more than once.
        """
        value = self.read()
        unread_s = time.monotonic() - self._read_s
        most_w = _MOST_W["dram" if self.name.endswith("dram") else "package"]
        if self.wraps_at is not None and unread_s * most_w > self.wraps_at * self.unit_j:
            raise OSError(f"not read for {unread_s:.0f} s, in which its counter may have wrapped")
        self._read_s += unread_s
        step = value - self._last
        if step < 0:
            if self.wraps_at is None:
                raise OSError("the counter was reset")
            step += self.wraps_at
        self._last, self._total = value, self._total + step
        return self._total * self.unit_j


class EnergyMeter:
    """The energy counters of one node, counted from the creation of this object.

    Attributes:
        unread: What could not be read, each with its reason.
    """

    def __init__(self, *, gpus: Sequence[str] | None, powercap: Path = POWERCAP) -> None:
        """Find the counters that can be read.

        Args:
            gpus: UUIDs of the GPUs to read, as `visible_gpus` of every rank of the node gave them; None to read none.
            powercap: Where the kernel shows the RAPL zones.
        """
        self.unread: list[str] = []
        self._counters: list[_Counter] = []
        for counter in [*self._rapl(powercap), *(self._nvml(gpus) if gpus is not None else [])]:
            try:
                counter.start()
                self._counters.append(counter)
            except OSError as error:
                self.unread.append(f"{counter.name}: {_reason(error)}")
        self._due_s = time.monotonic() + _PERIOD_S

    def start(self) -> None:
        """Count from here: what comes before training, which may take long, is no part of it."""
        for counter in list(self._counters):
            try:
                counter.start()
            except OSError as error:
                self._drop(counter, error)
        self._due_s = time.monotonic() + _PERIOD_S

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the counters that are read."""
        return tuple(counter.name for counter in self._counters)

    @property
    def due(self) -> bool:
        """Whether it is time for the next reading."""
        return time.monotonic() >= self._due_s

    def counted_j(self) -> dict[str, float]:
        """Return what each source has counted since the start, in J. One that fails is not asked again."""
        self._due_s = time.monotonic() + _PERIOD_S
        counted = {}
        for counter in list(self._counters):
            try:
                counted[counter.name] = counter.counted_j()
            except OSError as error:
                self._drop(counter, error)
        return counted

    def _drop(self, counter: _Counter, error: OSError) -> None:
        self._counters.remove(counter)
        self.unread.append(f"{counter.name}: {_reason(error)}")
        log.warning("the energy of %s is counted no more: %s", counter.name, _reason(error))

    def _rapl(self, powercap: Path) -> list[_Counter]:
        """Find packages and their dram. The zone psys holds the packages once more, as does intel-rapl-mmio."""
        zones = {path.name: path for path in sorted(powercap.glob("intel-rapl:*"))}
        counters = []
        for zone, path in zones.items():
            try:
                name = (path / "name").read_text().strip()
                if name == "dram":
                    name = f"{(zones[zone.rpartition(':')[0]] / 'name').read_text().strip()}/dram"
                elif not name.startswith("package"):
                    continue
                wraps_at = int((path / "max_energy_range_uj").read_text())
            except (OSError, ValueError, KeyError) as error:
                self.unread.append(f"{path}: {_reason(error)}")
                continue
            counters.append(_Counter(name, _file_reader(path / "energy_uj"), 1e-6, wraps_at))
        if not zones:
            self.unread.append(f"RAPL: {powercap} has no intel-rapl zones")
        return counters

    def _nvml(self, uuids: Sequence[str]) -> list[_Counter]:
        try:
            import pynvml as nvml
        except ImportError:
            self.unread.append("NVML: nvidia-ml-py is not installed; pip install 'galampi[energy]' brings it")
            return []
        try:
            nvml.nvmlInit()
        except nvml.NVMLError as error:
            self.unread.append(f"NVML: {error}")
            return []
        counters = []
        for uuid in uuids:
            try:
                handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
            except nvml.NVMLError as error:
                # As where each task of a batch job is shown its own GPU alone.
                self.unread.append(f"{uuid}: {error}")
                continue
            counters.append(_Counter(uuid, _gpu_reader(nvml, handle), 1e-3, None))
        return counters


def visible_gpus() -> list[str]:
    """Return the UUIDs of the GPUs this process may use: those of CUDA_VISIBLE_DEVICES if it is set, else all.

    There are none where NVML cannot be asked; `EnergyMeter` says why.
    """
    try:
        import pynvml as nvml
    except ImportError:
        return []
    try:
        nvml.nvmlInit()
        return [str(nvml.nvmlDeviceGetUUID(handle)) for handle in _gpu_handles(nvml)]
    except nvml.NVMLError:
        return []


def _file_reader(path: Path) -> Callable[[], int]:
    def read() -> int:
        try:
            return int(path.read_text())
        except ValueError as error:
            raise OSError(f"{path}: {error}") from error

    return read


def _gpu_reader(nvml: Any, handle: Any) -> Callable[[], int]:
    def read() -> int:
        try:
            return int(nvml.nvmlDeviceGetTotalEnergyConsumption(handle))
        except nvml.NVMLError as error:
            raise OSError(str(error)) from error

    return read


def _gpu_handles(nvml: Any) -> list[Any]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
    names = [name.strip() for name in visible.split(",") if name.strip()]
    return [
        nvml.nvmlDeviceGetHandleByIndex(int(name)) if name.isdigit() else nvml.nvmlDeviceGetHandleByUUID(name)
        for name in names
    ]


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(str(error).split())
