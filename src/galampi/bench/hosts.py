"""Hosts on a network, all on this machine: each a network namespace of its own, with links that are slow, late or cut.

Linux only, as root. A host has one interface, `net0`; what it sends comes to `python -m galampi.bench.hosts`, which
holds it up as a link would and passes it on, for a kernel may lack what else delays packets. Both MPI libraries start
ranks there by their own launchers, through an agent in the place of ssh.
"""

from __future__ import annotations

import fcntl
import heapq
import itertools
import json
import os
import random
import select
import shlex
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from galampi.errors import UserError
from galampi.launch.mpirun import mpirun

_TUN = "/dev/net/tun"
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
_MTU = 65_000
_MOST_BEHIND_S = 1.0
"""A link that is behind by more loses packets, as a router whose queue is full."""
# ssh's options, then the host, then a command for its shell.
_AGENT = """#!/bin/sh
while [ "${{1#-}}" != "$1" ]; do shift; done
host=${{1##*.}}
shift
exec ip netns exec {prefix}$host unshare --uts sh -c 'hostname {prefix}'$host'; '"$*"
"""


class Hosts:
    """A context in which there are hosts on a network.

    Attributes:
        num_hosts: How many; their addresses are 10.77.0.1 and on.
        prefix: What their names begin with, before their number.
    """

    def __init__(
        self,
        num_hosts: int,
        folder: Path,
        *,
        delay_s: float = 0.0,
        loss: float = 0.0,
        bytes_per_s: float = 0.0,
    ) -> None:
        """Make none yet.

        Args:
            num_hosts: How many.
            folder: Takes the agent and what the hosts share.
            delay_s: Time that a packet takes, s.
            loss: Share of the packets that are lost.
            bytes_per_s: Rate at which each host sends; 0 for as fast as it goes.

        Raises:
            UserError: This user or machine cannot have hosts.
        """
        if reason := cannot():
            raise UserError(f"hosts of network namespaces: {reason}")
        self.num_hosts = num_hosts
        self.prefix = f"galampi{os.getpid()}-"
        self._folder = folder
        link = {"delay_s": delay_s, "loss": loss, "bytes_per_s": bytes_per_s}
        self._link = {"num_hosts": num_hosts, "prefix": self.prefix, **link}
        self._links: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        """Make them, and connect them; take away what processes left that were killed."""
        for namespace in Path("/run/netns").glob("galampi*-*"):
            if not Path(f"/proc/{namespace.name.removeprefix('galampi').split('-')[0]}").exists():
                _remove(namespace.name)
        agent = self._folder / "agent.sh"
        agent.write_text(_AGENT.format(prefix=self.prefix))
        agent.chmod(0o755)
        for number in range(1, self.num_hosts + 1):
            name = f"{self.prefix}{number}"
            _run("ip", "netns", "add", name)
            # ip netns exec shows these to the host in the place of /etc.
            etc = Path("/etc/netns") / name
            etc.mkdir(parents=True)
            own = "".join(f"10.77.0.{each} {self.prefix}{each}\n" for each in range(1, self.num_hosts + 1))
            (etc / "hosts").write_text(f"127.0.0.1 localhost\n{own}")
        self._links = subprocess.Popen(
            [sys.executable, "-m", "galampi.bench.hosts", json.dumps(self._link)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._links.stdout is not None
        if not self._links.stdout.readline():
            self.__exit__(None, None, None)
            raise UserError("hosts of network namespaces: their links could not be made")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take them away."""
        if self._links is not None:
            self._links.communicate()
        for number in range(1, self.num_hosts + 1):
            _remove(f"{self.prefix}{number}")

    def cut(self, is_cut: bool) -> None:
        """Cut the links of the first host, or restore them."""
        assert self._links is not None and self._links.stdin is not None
        self._links.stdin.write("cut\n" if is_cut else "whole\n")
        self._links.stdin.flush()

    def on(self, host: int, command: Sequence[str]) -> list[str]:
        """Return the command that runs a command on a host, the first of which is 1."""
        return [str(self._folder / "agent.sh"), str(host), shlex.join(command)]

    def mpirun(self, ranks_per_host: int, program: Sequence[str]) -> list[str]:
        """Return the command that starts a program on every host."""
        agent = str(self._folder / "agent.sh")
        addresses = [f"10.77.0.{number}" for number in range(1, self.num_hosts + 1)]
        launcher, *options = mpirun(ranks_per_host * self.num_hosts)
        if "--bind-to" in options:
            hosts = ",".join(f"{address}:{ranks_per_host}" for address in addresses)
            options += ["--host", hosts, "--prtemca", "plm_ssh_agent", agent, "--prtemca", "prte_if_include", "net0"]
            options += ["--mca", "btl_tcp_if_include", "net0", "--mca", "mpi_yield_when_idle", "1"]
        else:
            options += ["-launcher", "ssh", "-launcher-exec", agent, "-hosts", ",".join(addresses)]
            options += ["-ppn", str(ranks_per_host), "-genv", "UCX_NET_DEVICES", "net0", "-genv", "UCX_TLS", "tcp,self"]
        return self.on(1, [launcher, *options, *program])


def cannot() -> str:
    """Say why there can be no hosts here; '' if there can."""
    if os.geteuid() != 0:
        return "root is needed"
    if not os.path.exists(_TUN):
        return f"{_TUN} is missing"
    if shutil.which("ip") is None:
        return "ip is missing (apt install iproute2)"
    name = f"galampi{os.getpid()}-0"
    try:
        _run("ip", "netns", "add", name)
        try:
            _run("ip", "netns", "exec", name, "unshare", "--uts", "hostname", name)
            os.close(_interface(0, name.removesuffix("0")))
        finally:
            _run("ip", "netns", "del", name)
    except subprocess.CalledProcessError as error:
        return f"{shlex.join(error.cmd)}: {error.stderr.decode().strip()}"
    except OSError as error:
        return f"{error.filename or _TUN}: {error.strerror}"
    return ""


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


def _remove(host: str) -> None:
    subprocess.run(["ip", "netns", "del", host], check=False)
    shutil.rmtree(Path("/etc/netns") / host, ignore_errors=True)


def _interface(number: int, prefix: str) -> int:
    """Make the interface of a host, and return the descriptor of its other end."""
    descriptor = os.open(_TUN, os.O_RDWR | os.O_NONBLOCK)
    own, host = f"gl{os.getpid() % 100000}-{number}", f"{prefix}{number}"
    fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", own.encode(), _IFF_TUN | _IFF_NO_PI))
    _run("ip", "link", "set", own, "netns", host)
    _run("ip", "-n", host, "link", "set", own, "name", "net0")
    _run("ip", "-n", host, "addr", "add", f"10.77.0.{number}/24", "dev", "net0")
    _run("ip", "-n", host, "link", "set", "net0", "mtu", str(_MTU), "txqueuelen", "10000", "up")
    _run("ip", "-n", host, "link", "set", "lo", "up")
    return descriptor


def _pass_on(num_hosts: int, prefix: str, delay_s: float, loss: float, bytes_per_s: float) -> None:
    """Pass packets between hosts until standard input ends."""
    ends = {_interface(number, prefix): number for number in range(1, num_hosts + 1)}
    descriptors = {number: descriptor for descriptor, number in ends.items()}
    print("ready", flush=True)
    free_s = dict.fromkeys(descriptors, 0.0)
    waiting: list[tuple[float, int, int, bytes]] = []
    order = itertools.count()
    chance = random.Random(1)
    is_cut = False
    while True:
        now_s = time.monotonic()
        while waiting and waiting[0][0] <= now_s:
            _, _, target, packet = heapq.heappop(waiting)
            try:
                os.write(descriptors[target], packet)
            except OSError:
                continue  # A queue is full, or the interface is down: the packet is lost.
        timeout_s = max(0.0, waiting[0][0] - now_s) if waiting else None
        readable, _, _ = select.select([0, *ends], [], [], timeout_s)
        for descriptor in readable:
            if descriptor == 0:
                word = os.read(0, 100).decode().split()
                if not word:
                    return
                is_cut = word[-1] == "cut"
                continue
            try:
                packet = os.read(descriptor, 1 << 16)
            except OSError:
                continue
            source, target = ends[descriptor], packet[19] if packet[0] >> 4 == 4 else 0
            if target not in descriptors or (is_cut and 1 in (source, target)) or chance.random() < loss:
                continue
            now_s = time.monotonic()
            begins_s = max(now_s, free_s[source])
            if begins_s - now_s > _MOST_BEHIND_S:
                continue
            free_s[source] = begins_s + (len(packet) / bytes_per_s if bytes_per_s else 0.0)
            heapq.heappush(waiting, (free_s[source] + delay_s, next(order), target, packet))


if __name__ == "__main__":
    _pass_on(**json.loads(sys.argv[1]))
