# make suite: accuracy and speed of all rows, two tables, out/report.md and out/report.json
# make peers: INT8 of all rows beside OpenVINO's, ONNX Runtime's and Paddle's own, out/peers.md and out/peers.json
# make gate-trials: how often `quant gate` is wrong, out/gate-trials.md; 45 minutes, and goes on where it was cut off
# make test:  what CI runs; what is timed (bench) alone, the rest on all cores
# make test-full: the same with all rows in all ways, all data and more damaged files; hours
# PYTHON=... names the interpreter; by default it is the newest of these that runs and can make environments.
RUNS := import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do \
	if "$$p" -c '$(RUNS)' >/dev/null 2>&1; then echo "$$p"; break; fi; done)
VENV := .venv
BIN := $(VENV)/bin

.PHONY: suite peers gate-trials test test-full lint clean

suite: $(VENV)/installed
	$(BIN)/python -m quant suite

peers: $(VENV)/installed-peers
	$(BIN)/python -m bench.peers

gate-trials: $(VENV)/installed
	$(BIN)/python -m bench.gate_trials

test: $(VENV)/installed
	$(BIN)/python -m pytest tests --numprocesses auto --dist loadscope --no-loadscope-reorder
	$(BIN)/python -m pytest bench

test-full: $(VENV)/installed
	QUANT_FUZZ_SEEDS=1000 $(BIN)/python -m pytest tests --full --numprocesses auto --dist loadscope --no-loadscope-reorder
	$(BIN)/python -m pytest bench --full

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Installed when pyproject.toml is newer; the mark comes last, so an install that was cut off is done again.
$(VENV)/installed: pyproject.toml
	@"$(PYTHON)" -c '$(RUNS)' 2>/dev/null || { echo "make: no Python 3.11, 3.12 or 3.13 with its venv module \
	on the PATH (Debian: apt install python3-venv); PYTHON=/path/to/python names one" | tr -s ' \t' ' ' >&2; exit 2; }
	"$(PYTHON)" -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --editable '.[test,dev]'
	touch $@

$(VENV)/installed-peers: $(VENV)/installed
	$(BIN)/python -m pip install --disable-pip-version-check --editable '.[test,dev,peers]'
	touch $@

clean:
	rm -rf $(VENV) out
