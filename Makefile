# make suite: accuracy and speed of all rows, two tables, out/report.md and out/report.json
# make peers: INT8 of all rows beside OpenVINO's, ONNX Runtime's and Paddle's own, out/peers.md and out/peers.json
# make gate-trials: how often `quant gate` is wrong, out/gate-trials.md; 45 minutes, and goes on where it was cut off
# make test:  the whole test suite; what is timed (bench) alone, the rest on all cores
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin

.PHONY: suite peers gate-trials test lint clean

suite: $(VENV)/installed
	$(BIN)/python -m quant suite

peers: $(VENV)/installed-peers
	$(BIN)/python -m bench.peers

gate-trials: $(VENV)/installed
	$(BIN)/python -m bench.gate_trials

test: $(VENV)/installed
	$(BIN)/python -m pytest tests --numprocesses auto --dist loadscope --no-loadscope-reorder
	$(BIN)/python -m pytest bench

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Installed when pyproject.toml is newer; the mark comes last, so an install that was cut off is done again.
$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --editable '.[test,dev]'
	touch $@

$(VENV)/installed-peers: $(VENV)/installed
	$(BIN)/python -m pip install --disable-pip-version-check --editable '.[test,dev,peers]'
	touch $@

clean:
	rm -rf $(VENV) out
