"""A container as bare as they come, made of namespaces where this user may make them."""

import shlex
import subprocess
import sys

import pytest
from launching import assert_sound
from limits import DEADLOCK_S

# No network interface but the loopback, a host name that nothing resolves, 4 MB of shared memory, and, where the
# files' owner is the one outside, a uid that has no name.
# Without the loopback Open MPI's launcher starts nothing, and says so.
BARE = ("unshare", "--net", "--uts", "--mount", "sh", "-c")
INSIDE = (
    "mount -t tmpfs -o size=4m tmpfs /dev/shm && hostname nowhere.invalid && "
    "ip link set lo up && "
    "exec unshare --user --map-user=12345 --map-group=12345 "
)


@pytest.mark.slow
def test_two_ranks_train_in_a_bare_container(small_job, tmp_path) -> None:
    if subprocess.run([*BARE, INSIDE + "true"], capture_output=True, check=False).returncode:
        pytest.skip("this user may not make namespaces")
    out = tmp_path / "run"
    train = f"{sys.executable} -m galampi train {small_job} --out {out} --total_env_steps 4000"
    done = subprocess.run(
        [*BARE, INSIDE + shlex.join(["sh", "-c", f"id -un; hostname; exec mpirun -n 2 {train}"])],
        capture_output=True,
        text=True,
        timeout=DEADLOCK_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "cannot find name for user ID 12345" in done.stderr and done.stdout.startswith("12345\nnowhere.invalid\n")
    assert_sound(out, num_ranks=2, status="finished")
