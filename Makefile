# Each target makes what it needs. MPI=openmpi picks the other MPI library, in a virtual environment of its own.
MPI ?= mpich
PYTHON ?= python3
RANKS ?= 2
VENV := .venv-$(MPI)
READY := $(VENV)/.ready
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

# Open MPI: more ranks than cores, as root in a container, and without the warnings of its UCX window component.
export PRTE_MCA_rmaps_default_mapping_policy ?= :oversubscribe
export OMPI_MCA_osc ?= ^ucx
export OMPI_ALLOW_RUN_AS_ROOT ?= 1
export OMPI_ALLOW_RUN_AS_ROOT_CONFIRM ?= 1
export PRTE_ALLOW_RUN_AS_ROOT ?= 1
export PRTE_ALLOW_RUN_AS_ROOT_CONFIRM ?= 1

.PHONY: run test test-unit test-ranks check format clean

run: $(READY)  ## Train the built-in job on RANKS ranks
	mpirun -n $(RANKS) python -m galampi $(ARGS)

test:  ## Run every test, those with ranks under both MPI libraries
	$(MAKE) MPI=mpich test-unit test-ranks
	$(MAKE) MPI=openmpi test-ranks

test-unit: $(READY)
	python -m pytest tests/unit tests/golden

test-ranks: $(READY)
	python -m pytest tests/mpi tests/jobs
	python -m pytest tests/mpi --network

check: $(READY)  ## Lint, types, architecture, spelling, shell
	ruff check .
	ruff format --check .
	mypy
	lint-imports
	codespell
	shellcheck .ci/run

format: $(READY)
	ruff check --fix .
	ruff format .

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	python -m pip install --quiet --constraint constraints.txt --editable '.[$(MPI),dev,report,notebook,video,export,energy]'
	touch $@

clean:
	rm -rf .venv-mpich .venv-openmpi
