"""Every check of `doctor` finds what it is there for: each is shown what is wrong, often on one of two ranks."""

import errno
import fcntl
import os
import sys
import tempfile
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.mpi(ranks=2)


def state_and_text(comm, finding) -> tuple[str, str]:
    """Return what rank 0 found, for its word counts."""
    return comm.bcast((finding.state, finding.text))


def test_library_placement_and_launcher(comm, monkeypatch) -> None:
    from dataclasses import replace

    from mpi4py import MPI

    from galampi.launch.doctor import launcher
    from galampi.ranks import placement

    assert state_and_text(comm, launcher.check_library(comm))[0] == "ok"
    with monkeypatch.context() as patch:
        patch.setattr(placement, "library_name", lambda: f"MPI {comm.rank}")
        state, text = state_and_text(comm, launcher.check_library(comm))
        assert (state, text.count("MPI ")) == ("failed", 2)
    with monkeypatch.context() as patch:
        patch.setattr(MPI, "Query_thread", lambda: MPI.THREAD_SERIALIZED)
        state, text = state_and_text(comm, launcher.check_library(comm))
        assert state == "warning"
        assert "serialized" in text

    for wanted, number in (("3", 3), ("", None), ("many", None)):
        with monkeypatch.context() as patch:
            patch.setenv("OMP_NUM_THREADS", wanted)
            here = placement.place(comm)
        assert here.num_torch_threads == (number or here.num_threads)
        assert ("3 threads for torch (OMP_NUM_THREADS), " in str(here)) == (number is not None)
    # Ranks that are more than cores, as many, and with more threads than a site's OMP_NUM_THREADS leaves cores for.
    for cores, num_torch_threads, expected in ((1, 1, "warning"), (2, 1, "ok"), (2, 2, "warning"), (4, 2, "ok")):
        crowded = replace(
            here, cpus=frozenset(range(8)), num_cores=cores, num_sharing=2, num_torch_threads=num_torch_threads
        )
        with monkeypatch.context() as patch:
            patch.setattr(placement, "place", lambda comm, crowded=crowded: crowded)
            ranks, binding = launcher.check_placement(comm)
        assert "2 ranks on 1 node" in ranks.text
        assert binding.state == expected

    assert state_and_text(comm, launcher.check_singleton(comm))[0] == "ok"
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", "/bin/false")
        assert state_and_text(comm, launcher.check_singleton(comm))[0] == "warning"


def test_speed_and_window(comm, monkeypatch) -> None:
    from mpi4py import MPI

    import galampi.memory
    from galampi.job import load_job
    from galampi.launch.doctor import memory, speed
    from galampi.learning import RolloutCollector

    # It measures what training does.
    kept = []
    monkeypatch.setattr(galampi.memory, "keep_freed_memory", lambda: kept.append(True))
    job = load_job(None, {"environment.id": "CartPole-v1", "device": "cpu"})
    monkeypatch.setattr(speed, "_MEASURE_S", 0.5)
    of_job, num_parameters = speed.check_speed(job, comm)
    assert kept
    assert len(of_job.figures["learner_steps_per_s"]) == 2
    assert min(of_job.figures["learner_steps_per_s"]) < min(of_job.figures["emulator_steps_per_s"])
    if comm.rank == 1:
        collect = RolloutCollector.collect
        monkeypatch.setattr(RolloutCollector, "collect", lambda self: (time.sleep(1), collect(self))[1])
    of_job, _ = speed.check_speed(job, comm)
    assert of_job.state == "warning"
    assert "less than half as fast" in of_job.advice
    no_gpu = load_job(None, {"environment.id": "CartPole-v1", "device": "cuda"})
    of_job, none = speed.check_speed(no_gpu, comm)
    assert (of_job.state, none) == ("failed", None)
    assert "device is 'cuda'" in of_job.text

    window = memory.check_window(job, comm, num_parameters)
    assert window.state == "ok"
    assert window.text.startswith("0.02 MiB of mailboxes a rank (exponential), unified memory")
    for method in ("allreduce", "none"):
        silent = load_job(None, {"environment.id": "CartPole-v1", "gossip.method": method})
        window = memory.check_window(silent, comm, num_parameters)
        assert window.text.startswith(f"0.00 MiB of mailboxes a rank (method {method}), unified memory")

    class Room:
        f_bavail, f_frsize = (1, 4096) if comm.rank == 1 else (1 << 40, 4096)
        f_blocks = f_bfree = f_bavail

    with monkeypatch.context() as patch:
        patch.setattr(os, "statvfs", lambda path: Room)
        window = memory.check_window(job, comm, 1_000_000)
    assert window.state == "failed"
    assert "/dev/shm" in window.text
    assert "/dev/shm" in window.advice

    monkeypatch.setattr(MPI, "WIN_UNIFIED", -1)
    window = memory.check_window(job, comm, num_parameters)
    assert window.state == "failed"
    assert "unified memory" in window.text
    assert window.advice.startswith("use another MPI library")


def test_messages_clocks_and_leftovers(comm, monkeypatch, tmp_path) -> None:
    from galampi.launch.doctor import memory, network

    (pair,) = network.check_network(comm, 2 << 20).figures["pairs"]
    assert pair["from"].startswith("rank 0 on ")
    assert pair["put_bytes_per_s"] > 0
    assert pair["latency_s"] > 0
    monkeypatch.setattr(network, "_SLOW_PUT_BYTES_A_S", 1e18)
    assert network.check_network(comm, 2 << 20).state == "warning"

    assert network.check_clocks(comm).state == "ok"
    true_s = time.time
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: true_s() - 10 * comm.rank)
        clocks = network.check_clocks(comm)
    assert clocks.state == "warning"
    assert clocks.figures["skew_s"] == pytest.approx(10, abs=1)

    monkeypatch.setattr(memory, "_SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert memory.check_leftovers(comm).state == "ok"
    if comm.rank == 1:
        (tmp_path / "mpich_shm_1_2").write_bytes(bytes(1 << 20))
    state, text = state_and_text(comm, memory.check_leftovers(comm))
    assert (state, "1.00 MiB" in text) == ("warning", True)
    (tmp_path / "mpich_shm_1_2").unlink(missing_ok=True)

    # Folders of launchers: of one that runs, of one that does not, and of somebody else's program.
    if comm.rank == 1:
        for name in (f"ompi.{os.getpid()}", "prted.0", "prtedly.0", "ompi.x"):
            (tmp_path / name).mkdir()
    state, text = state_and_text(comm, memory.check_leftovers(comm))
    assert (state, "1 folder of Open MPI" in text) == ("warning", True)


def test_files(comm, monkeypatch, tmp_path) -> None:
    from galampi.launch.doctor import files

    folder = Path(comm.bcast(str(tmp_path)))

    def found(out: Path) -> list[tuple[str, str]]:
        return comm.bcast([(finding.state, finding.text) for finding in files.check_files(out, comm)])

    ((state, text),) = found(folder / "new/run")
    assert state == "ok"
    assert str(folder) in text
    ((state, text),) = found(tmp_path / str(comm.rank))
    assert (state, "every rank" in text, f"({files._file_system(tmp_path)})" in text) == ("failed", True, True)
    ((state, text),) = found(Path("/proc/run"))
    assert (state, text.count("\n"), "HDF5 cannot write" in text) == ("failed", 0, True)

    def refuse(*_, **__) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert [(state, "no locks" in text) for state, text in found(folder)] == [("warning", True)]
    open_file = files.h5py.File
    if comm.rank == 1:
        monkeypatch.setattr(files.h5py, "File", refuse)
    assert [state for state, _ in found(folder)] == ["warning"] * 2
    monkeypatch.setattr(files, "_SLOW_FLUSH_S", 0.0)
    assert [state for state, _ in found(folder)] == ["warning"] * 3

    # A file system on which HDF5's locks fail: galampi does without, others may not.
    def refuse_to_lock(*arguments, locking=None, **options):
        return open_file(*arguments, locking=locking, **options) if locking is False else refuse()

    monkeypatch.undo()
    monkeypatch.setattr(files.h5py, "File", refuse_to_lock)
    assert [(state, "HDF5's own locks" in text) for state, text in found(folder)] == [("warning", True)]
    assert not list(folder.iterdir())


def test_a_folder_of_each_node_is_no_shared_one(comm, monkeypatch, tmp_path) -> None:
    """A folder like /tmp is on every node, and what is written there is on one."""
    from galampi.launch.doctor import files

    folder = Path(comm.bcast(str(tmp_path)))
    # As if on another node. HDF5 opens files by itself.
    if comm.rank == 1:
        exists = Path.exists

        def gone(*_, **__) -> None:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory")

        monkeypatch.setattr(Path, "exists", lambda path: "galampi-doctor" not in path.name and exists(path))
        monkeypatch.setattr(files.h5py, "File", gone)
    (finding,) = comm.bcast(list(files.check_files(folder, comm)))
    assert finding.state == "failed"
    assert "rank 1" in finding.text
    assert f"({files._file_system(folder)})" in finding.text
    assert finding.advice == "choose a folder on a file system that all nodes share"
    assert not os.listdir(folder)


@pytest.mark.parametrize("broken", ["write", "lock"])
def test_no_file_stays(comm, monkeypatch, tmp_path, broken) -> None:
    from galampi.launch.doctor import files

    folder = Path(comm.bcast(str(tmp_path)))

    def fill(*_, **__) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def interrupt(*_) -> None:
        raise KeyboardInterrupt

    if broken == "write":
        # The file is there by then.
        monkeypatch.setattr(files.h5py.Group, "create_dataset", fill)
        (finding,) = comm.bcast(list(files.check_files(folder, comm)))
        assert finding.state == "failed"
        assert "No space left on device" in finding.text
    elif comm.rank == 0:
        monkeypatch.setattr(files, "_lock_and_rename", interrupt)
        with pytest.raises(KeyboardInterrupt):
            list(files.check_files(folder, comm))
    else:
        list(files.check_files(folder, comm))
    comm.Barrier()
    assert not os.listdir(folder)


@pytest.mark.slow
def test_gpus_and_energy(comm, monkeypatch, tmp_path) -> None:
    import torch

    from galampi import results
    from galampi.job import load_job
    from galampi.launch.doctor import hardware

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert hardware.check_gpus(load_job(None, {"device": "auto"}), comm).state == "ok"
    job = load_job(None, {"device": "cuda"})
    assert hardware.check_gpus(job, comm).state == "failed"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(tmp_path))
    gpus = hardware.check_gpus(job, comm)
    assert gpus.state == "warning"
    assert "1 for 2 ranks; no MPS" in gpus.text
    # Each rank has its own, and calls it the first; or both see both, and take turns.
    for seen in ([f"GPU-{comm.rank}"], ["GPU-0", "GPU-1"]):
        monkeypatch.setattr(results, "visible_gpus", lambda seen=seen: seen)
        monkeypatch.setattr(torch.cuda, "device_count", lambda seen=seen: len(seen))
        gpus = hardware.check_gpus(job, comm)
        assert (gpus.state, "2 for 2 ranks" in gpus.text) == ("ok", True)
    (tmp_path / "control").touch()
    gpus = hardware.check_gpus(job, comm)
    assert (gpus.state, "MPS runs" in gpus.text) == ("ok", True)

    class Meter:
        unread = ("RAPL: energy_uj: Permission denied",)

        def __init__(self, *, gpus: bool) -> None:
            self.sources = {"package-0": 1.0} if comm.rank == 0 else {}

        def counted_j(self) -> dict[str, float]:
            return self.sources

    monkeypatch.setattr(results, "EnergyMeter", Meter)
    energy = hardware.check_energy(comm)
    # A source on one node alone does not tell what the job takes.
    assert energy.state == "warning"
    assert "Permission denied" in energy.text
    monkeypatch.setattr(Meter, "counted_j", lambda self: {"package-0": 1.0})
    energy = hardware.check_energy(comm)
    assert (energy.state, "package-0" in energy.text) == ("ok", True)
