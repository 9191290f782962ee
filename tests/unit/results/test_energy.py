"""Energy counters: a made-up tree of powercap files, and a made-up NVML."""

import sys
import types
from pathlib import Path

import pytest

from galampi.results import EnergyMeter, RankWriter, visible_gpus
from galampi.results.reader import RankFile

RANGE_UJ = 262_143_328_850


def zone(root: Path, name: str, label: str, energy_uj: int = 0) -> Path:
    """Make one zone of /sys/class/powercap."""
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "name").write_text(label + "\n")
    (folder / "max_energy_range_uj").write_text(f"{RANGE_UJ}\n")
    (folder / "energy_uj").write_text(f"{energy_uj}\n")
    return folder / "energy_uj"


@pytest.fixture
def powercap(tmp_path):
    """Make the zones of a node of two packages, with all that must not be counted."""
    root = tmp_path / "powercap"
    (root / "intel-rapl").mkdir(parents=True)
    zone(root, "intel-rapl:0", "package-0", RANGE_UJ - 2_000_000)
    zone(root, "intel-rapl:0:0", "core")
    zone(root, "intel-rapl:0:1", "dram", 5_000_000)
    zone(root, "intel-rapl:1", "package-1", 7)
    zone(root, "intel-rapl:2", "psys")
    zone(root, "intel-rapl-mmio:0", "package-0")
    return root


def set_all(root: Path, **energies_uj: int) -> None:
    for name, energy_uj in energies_uj.items():
        zone_name = {"package0": "intel-rapl:0", "dram0": "intel-rapl:0:1", "package1": "intel-rapl:1"}[name]
        (root / zone_name / "energy_uj").write_text(f"{energy_uj}\n")


def test_packages_and_dram_are_counted_and_nothing_twice(powercap):
    meter = EnergyMeter(gpus=None, powercap=powercap)
    assert meter.unread == []
    assert meter.sources == ("package-0", "package-0/dram", "package-1")
    assert meter.counted_j() == {"package-0": 0, "package-0/dram": 0, "package-1": 0}
    for path in powercap.glob("*/energy_uj"):
        path.write_text(f"{int(path.read_text()) + 1_000_000}\n")
    counted = meter.counted_j()
    assert counted == pytest.approx({"package-0": 1.0, "package-0/dram": 1.0, "package-1": 1.0})


def test_a_counter_that_may_have_wrapped_unseen_is_read_no_more(powercap, monkeypatch) -> None:
    """262 kJ are seven minutes at a package's 600 W, and three quarters of an hour at a memory's 100 W."""
    now_s = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now_s[0])
    meter = EnergyMeter(gpus=None, powercap=powercap)
    # The set-up of a job may take long, and is no part of what is counted.
    now_s[0] += 500
    meter.start()
    assert (meter.unread, len(meter.counted_j())) == ([], 3)
    now_s[0] += 400
    assert len(meter.counted_j()) == 3
    now_s[0] += 500
    assert list(meter.counted_j()) == ["package-0/dram"]
    assert all(reason.endswith("not read for 500 s, in which its counter may have wrapped") for reason in meter.unread)
    now_s[0] += 2700
    assert not meter.counted_j()


def test_a_counter_that_wraps_goes_on(powercap):
    meter = EnergyMeter(gpus=None, powercap=powercap)
    set_all(powercap, package0=3_000_000, dram0=5_500_000, package1=7)
    # 2 J to the end of its range and 3 J past it.
    assert meter.counted_j() == pytest.approx({"package-0": 5.0, "package-0/dram": 0.5, "package-1": 0.0})
    set_all(powercap, package0=RANGE_UJ - 1_000_000)
    meter.counted_j()
    set_all(powercap, package0=1_000_000)
    assert meter.counted_j()["package-0"] == pytest.approx(3 + RANGE_UJ * 1e-6)


def test_what_cannot_be_read_is_named_and_not_zero(powercap):
    (powercap / "intel-rapl:1" / "energy_uj").unlink()
    # A directory: unreadable even for root, who may read every file.
    (powercap / "intel-rapl:0" / "energy_uj").unlink()
    (powercap / "intel-rapl:0" / "energy_uj").mkdir()
    meter = EnergyMeter(gpus=None, powercap=powercap)
    assert meter.counted_j() == {"package-0/dram": 0.0}
    assert [line.split(":")[0] for line in meter.unread] == ["package-0", "package-1"]
    assert meter.unread[0].endswith("intel-rapl:0/energy_uj: Is a directory")
    assert meter.unread[1].endswith("intel-rapl:1/energy_uj: No such file or directory")


def test_a_counter_lost_on_the_way_is_not_asked_again(powercap):
    meter = EnergyMeter(gpus=None, powercap=powercap)
    (powercap / "intel-rapl:0:1" / "energy_uj").write_text("what?\n")
    assert "package-0/dram" not in meter.counted_j()
    assert meter.unread[0].startswith("package-0/dram: ")
    set_all(powercap, dram0=9_000_000)
    assert "package-0/dram" not in meter.counted_j()
    assert len(meter.unread) == 1


def test_a_node_without_counters_says_so(tmp_path):
    meter = EnergyMeter(gpus=None, powercap=tmp_path)
    assert meter.counted_j() == {}
    assert meter.unread == [f"RAPL: {tmp_path} has no intel-rapl zones"]


class FakeNvml(types.ModuleType):
    """Two GPUs, of which the second has no counter."""

    class NVMLError(Exception):
        pass

    def __init__(self) -> None:
        super().__init__("pynvml")
        self.energy_mj = 40_000
        self.started = False

    def nvmlInit(self):  # noqa: N802
        self.started = True

    def nvmlDeviceGetCount(self):  # noqa: N802
        return 2

    def nvmlDeviceGetHandleByIndex(self, index):  # noqa: N802
        return index

    def nvmlDeviceGetHandleByUUID(self, uuid):  # noqa: N802
        return int(uuid.removeprefix("GPU-"))

    def nvmlDeviceGetUUID(self, handle):  # noqa: N802
        return f"GPU-{handle}"

    def nvmlDeviceGetTotalEnergyConsumption(self, handle):  # noqa: N802
        if handle == 1:
            raise self.NVMLError("Not Supported")
        return self.energy_mj


def test_gpus(tmp_path, monkeypatch):
    nvml = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    meter = EnergyMeter(gpus=visible_gpus(), powercap=tmp_path)
    assert meter.unread[1:] == ["GPU-1: Not Supported"]
    nvml.energy_mj += 1500
    assert meter.counted_j() == {"GPU-0": 1.5}
    # It does not wrap: a smaller value is a driver that was loaded anew.
    nvml.energy_mj = 10
    assert meter.counted_j() == {}
    assert meter.unread[-1] == "GPU-0: the counter was reset"


@pytest.mark.parametrize(("visible", "expected"), [("0", ["GPU-0"]), ("GPU-0", ["GPU-0"]), ("", []), ("1", [])])
def test_only_the_gpus_of_the_job(tmp_path, monkeypatch, visible, expected):
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml())
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert list(EnergyMeter(gpus=visible_gpus(), powercap=tmp_path).counted_j()) == expected


def test_a_gpu_that_another_rank_of_the_node_uses_is_read_or_said_to_be_missing(tmp_path, monkeypatch):
    nvml = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    by_uuid = nvml.nvmlDeviceGetHandleByUUID

    def hidden(uuid):
        if uuid == "GPU-7":
            raise nvml.NVMLError("Not Found")
        return by_uuid(uuid)

    nvml.nvmlDeviceGetHandleByUUID = hidden
    meter = EnergyMeter(gpus=["GPU-0", "GPU-7"], powercap=tmp_path)
    assert meter.sources == ("GPU-0",)
    assert meter.unread[-1] == "GPU-7: Not Found"


def test_gpus_without_the_library(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    meter = EnergyMeter(gpus=visible_gpus(), powercap=tmp_path)
    assert meter.unread[1].startswith("NVML: nvidia-ml-py is not installed")


def test_readings_reach_the_file(tmp_path):
    with RankWriter(tmp_path / "rank-0000.h5", rank=0) as writer:
        writer.write_energy(30.0, "node-1", {"package-0": 1.5, "GPU-é": 2.0})
        writer.write_energy(60.0, "node-ü", {"package-0": 3.0})
    energy = RankFile(tmp_path / "rank-0000.h5", 0).energy.read()
    assert energy["reading"].tolist() == [1, 2, 3]
    assert energy["time_s"].tolist() == [30.0, 30.0, 60.0]
    assert energy["source"].tolist() == ["package-0", "GPU-?", "package-0"]
    assert energy["host"].tolist() == ["node-1", "node-1", "node-?"]
    assert energy["energy_j"].tolist() == [1.5, 2.0, 3.0]
