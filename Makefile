# make demo | test | lint | bench: each creates the environment it needs in .venv.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# With an NVIDIA GPU the ordinary resolution is right; without one the CPU pair is pinned.
CONSTRAINTS := $(if $(shell command -v nvidia-smi 2>/dev/null),,-c constraints/cpu.txt)
TORCH       := $(if $(CONSTRAINTS),torch==2.13.0 torchvision==0.28.0,)

.PHONY: demo test lint bench clean
.DEFAULT_GOAL := help
help:
	@echo "make demo   the whole loop on the wind tunnel: images -> data -> model -> measured against the truth"
	@echo "make test   all tests"
	@echo "make lint   ruff and pyright"
	@echo "make bench  side-by-side measurements, printed as tables"

$(VENV)/.installed: pyproject.toml constraints/cpu.txt constraints/dev.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints/dev.txt $(CONSTRAINTS) $(TORCH) -e '.[dev]'
	@# A CUDA torchvision beside CPU torch breaks whatever imports it before our package does (`accelerate launch`).
	$(if $(CONSTRAINTS),echo 'import infinity_mm' > $$($(BIN)/python -c "import site; print(site.getsitepackages()[0])")/infinity_mm_compat.pth)
	touch $@

demo: $(VENV)/.installed
	$(BIN)/infinity-mm demo

test: $(VENV)/.installed
	$(BIN)/python -m pytest

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

bench: $(VENV)/.installed
	@for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

clean:
	rm -rf $(VENV) runs build dist *.egg-info
