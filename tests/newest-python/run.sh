#!/usr/bin/env bash
# The package under a newer Python, in a Debian of its own: the wheel installed, a part of the unit tests, training on
# two ranks. Root only.
#
#   run.sh [WHEEL]
#
# Without one, only the Debian is made.
# DEBIAN is which [forky, with Python 3.14]; trixie has 3.13. NEWEST_PYTHON_FOLDER is where it is kept for the next
# time, 2 GB [/var/tmp/galampi-DEBIAN]; DEBIAN_MIRROR where it comes from.
# torch is Debian's, which is without CUDA; for most Pythons PyPI's comes with gigabytes of it.
set -euo pipefail
export PATH="$PATH:/usr/sbin:/sbin"

here=$(realpath -- "$0")
repository=${here%/tests/*}
debian=${DEBIAN:-forky}
root=$(realpath -m -- "${NEWEST_PYTHON_FOLDER:-/var/tmp/galampi-$debian}")
mirror=${DEBIAN_MIRROR:-http://deb.debian.org/debian}
tools=(pytest pytest-isolate-mpi pytest-timeout pytest-xdist hypothesis)
tests=(gossip job results learning/test_{a2c,kernels,optimizer,policy,returns,step_norm}.py)

fail() {
    echo "newest-python: $*" >&2
    exit 1
}

wheel=${1:+$(realpath -e -- "$1")}
[[ $(id -u) == 0 ]] || fail "needs root"
command -v debootstrap >/dev/null || fail "debootstrap is missing: apt-get install debootstrap"
if [[ -z ${NEWEST_PYTHON_INSIDE:-} ]]; then
    # What is mounted, and whoever is left running, goes with this process, however it ends.
    unshare --mount --pid --fork true 2>/dev/null || fail "namespaces for mounts and processes are not to be had here"
    export NEWEST_PYTHON_INSIDE=1
    exec unshare --mount --pid --fork --kill-child "$here" ${wheel:+"$wheel"}
fi

# Checkouts of one machine share it: one after the other.
mkdir -p "$(dirname "$root")"
exec 9>"$root.lock"
flock 9

inside() {
    local -a kept=()
    local name
    for name in http_proxy https_proxy no_proxy PIP_INDEX_URL PIP_CERT; do
        if [[ -n ${!name:-} ]]; then kept+=("$name=${!name}"); fi
    done
    chroot "$1" env -i "${kept[@]}" HOME=/root LANG=C.UTF-8 DEBIAN_FRONTEND=noninteractive \
        PYTHONDONTWRITEBYTECODE=1 PATH=/opt/galampi/bin:/usr/sbin:/usr/bin:/sbin:/bin "${@:2}"
}

if [[ ! -d $root ]]; then
    rm -rf "${root:?}.new"
    script=/usr/share/debootstrap/scripts/$debian
    # One that is newer than debootstrap is made as the newest that this knows.
    [[ -e $script ]] || script=/usr/share/debootstrap/scripts/sid
    debootstrap --variant=minbase "$debian" "$root.new" "$mirror" "$script" >"$root.log" ||
        fail "debootstrap failed: $(tail -n 3 "$root.log")"
    # By the BLAS that numpy and torch else get there, a long dot product is right to three digits.
    inside "$root.new" apt-get install -q -y --no-install-recommends \
        ca-certificates python3-venv python3-torch libopenblas0-pthread >>"$root.log" 2>&1 ||
        fail "apt-get failed: $(tail -n 3 "$root.log")"
    mv "$root.new" "$root"
fi
if [[ -z $wheel ]]; then exit; fi

mkdir -p "$root/mnt/repository" "$root/mnt/wheel"
mount -t proc proc "$root/proc"
mount --rbind /sys "$root/sys"
mount --rbind /dev "$root/dev"
mount --bind "$repository" "$root/mnt/repository"
mount -o remount,bind,ro "$root/mnt/repository"
cp /etc/resolv.conf "$root/etc/resolv.conf"
# Behind a proxy there may be certificates of this machine's own.
certificates=${PIP_CERT:-/etc/ssl/certs/ca-certificates.crt}
if [[ -e $certificates ]]; then
    cp "$certificates" "$root/mnt/certificates.crt"
    PIP_CERT=/mnt/certificates.crt
fi
rm -rf "$root/opt/galampi" "$root/mnt/wheel"/* "$root/tmp"/*
cp "$wheel" "$root/mnt/wheel/"
grep -vE '^(torch|sympy|networkx|triton)==' "$repository/constraints.txt" >"$root/mnt/wheel/constraints.txt"

inside "$root" python3 -m venv --system-site-packages /opt/galampi
inside "$root" pip install --quiet --constraint /mnt/wheel/constraints.txt \
    "/mnt/wheel/$(basename "$wheel")[mpich,report,notebook]" "${tools[@]}"
inside "$root" python -c 'import sys, torch; print("Python", sys.version.split()[0] + ", torch", torch.__version__)'
inside "$root" galampi --version
# From a folder that can be written. CI: hypothesis takes Debian's torch, which is in no site-packages, for code under test
# and reads it all; then it is not to mind that this is slow. One thread for each of two processes, and nothing of
# bfloat16, which Debian's torch emulates on most processors: what is tried is Python.
inside "$root" env CI=true OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 sh -c 'cd /tmp && exec python -m pytest "$@"' -- \
    --config-file /mnt/repository/pyproject.toml -p no:cacheprovider --numprocesses 2 --timeout 300 --timeout-method thread \
    -k "not bfloat16" "${tests[@]/#//mnt/repository/tests/unit/}"
inside "$root" sh -c 'cd /tmp && mpirun -n 2 galampi train cartpole --out run --total_env_steps 20000 --quiet'
inside "$root" galampi status /tmp/run
