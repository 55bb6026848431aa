# make demo       convert the small checkpoint that ships with the repository, reconstruct a photograph with it
# make test       the fast tests
# make test-all   all tests, with the libraries of the examples
# make check      lint, types, build of wheel and sdist
# make bench      speed and memory beside transformers' ViTMAE (half an hour on two cores): benchmarks/README.md
# make runs       small pretraining, fine-tuning and linear probing, with curves (ten minutes): examples/README.md
# make parity     the table of the three sizes, measured again
# make cards      the same (minutes), written into README and model cards; python -m benchmarks.parity --cards does not measure
#
# PyTorch's default build for Linux brings several GB of CUDA packages. Another build of PyTorch: make TORCH="torch==2.13.0 --index-url URL", with the URL that its installation page gives
PYTHON ?= python3
TORCH ?= torch==2.13.0
BIN := .venv/bin

.PHONY: demo test test-all check bench runs parity cards clean

# PyTorch comes first and by itself, so that nothing else can choose its build.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet $(TORCH)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[test]"
	touch $@

.venv/checked: .venv/installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[test,check]"
	touch $@

.venv/complete: .venv/installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[test,examples,demo,benchmarks]"
	touch $@

demo: .venv/installed
	$(BIN)/mae-hf convert examples/demo/mae_demo.pth demo/mae-demo --overwrite --num-attention-heads 4 --decoder-num-attention-heads 4
	$(BIN)/mae-hf verify examples/demo/mae_demo.pth demo/mae-demo
	$(BIN)/mae-hf reconstruct examples/demo/chelsea.png --model demo/mae-demo --output demo/reconstruction.png
	@echo
	@echo "The picture is demo/reconstruction.png. With a released checkpoint, mae_visualize_vit_base.pth for example:"
	@echo "  .venv/bin/mae-hf convert mae_visualize_vit_base.pth ./mae-vit-base"
	@echo "  .venv/bin/mae-hf reconstruct YOUR_PHOTO.jpg --model ./mae-vit-base --output out.png"

test: .venv/installed
	$(BIN)/pytest -m "not heavy"

test-all: .venv/complete
	$(BIN)/pytest

check: .venv/checked
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m build --quiet --outdir dist

.venv/measured: .venv/installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[test,benchmarks]"
	touch $@

runs: .venv/complete
	$(BIN)/python examples/small_runs.py

bench: .venv/measured
	$(BIN)/python -m benchmarks.speed --output benchmarks/results/latest

parity: .venv/installed
	$(BIN)/python -m benchmarks.parity

cards: .venv/installed
	$(BIN)/python -m benchmarks.parity --write

clean:
	rm -rf .venv build dist demo *.egg-info .mypy_cache .ruff_cache .pytest_cache
