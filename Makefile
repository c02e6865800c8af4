# make demo | test | lint | bench: each creates the environment it needs in .venv. test-serving has one of its own.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
SERVING := .venv-serving
# With an NVIDIA GPU the ordinary resolution is right; without one the CPU pair is pinned.
CONSTRAINTS := $(if $(shell command -v nvidia-smi 2>/dev/null),,-c constraints/cpu.txt)
TORCH       := $(if $(CONSTRAINTS),torch==2.13.0 torchvision==0.28.0,)

.PHONY: demo test test-serving lint bench clean
.DEFAULT_GOAL := help
help:
	@echo "make demo   the whole loop on the wind tunnel: images -> data -> model -> measured against the truth"
	@echo "make test   all tests but those of serving"
	@echo "make test-serving   vLLM's CPU build serves checkpoints and is compared with transformers; minutes"
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

# vLLM pins its torch, so it has its own environment. Its CPU build asks for a torchvision, torchaudio and torchcodec
# that are built for CUDA and break `import transformers` beside CPU torch; it works without them. The processors of
# other model families do need torchvision: it lies beside, for the tests of these.
$(SERVING)/.installed: constraints/serving.txt
	$(PYTHON) -m venv $(SERVING)
	$(SERVING)/bin/python -m pip install -q --disable-pip-version-check --no-compile -r constraints/serving.txt
	$(SERVING)/bin/python -m pip uninstall -q -y torchvision torchaudio torchcodec
	$(SERVING)/bin/python -m pip install -q --disable-pip-version-check --no-deps --target $(SERVING)/torchvision torchvision==0.28.0
	touch $@

# The package lies beside the environment's own, so that a server can run with it or without.
test-serving: $(SERVING)/.installed
	rm -rf build $(SERVING)/package
	$(SERVING)/bin/python -m pip install -q --disable-pip-version-check --no-deps --target $(SERVING)/package .
	$(SERVING)/bin/python -m pytest tests/serving --confcutdir tests/serving

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

bench: $(VENV)/.installed
	@for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

clean:
	rm -rf $(VENV) $(SERVING) runs build dist *.egg-info
