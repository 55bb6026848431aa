# make demo       convert the small checkpoint that ships with the repository, reconstruct a photograph with it
# make test       the fast tests, on two cores: make test WORKERS=4 takes four
# make test-all   all tests, with the libraries of the examples
# make check      lint, types, build of wheel and sdist
# make bench      speed and memory beside transformers' ViTMAE (half an hour on two cores): benchmarks/README.md
# make runs       small pretraining, fine-tuning and linear probing, with curves (ten minutes): examples/README.md
# make parity     measure the sizes that have golden values, and print their table (minutes)
# make cards      the same, and update README and model cards; python -m scripts.size_cards updates them without measuring
#
# PyTorch's default build for Linux brings several GB of CUDA packages. For another build: make TORCH="torch==2.13.0 --index-url URL",
# with the URL from PyTorch's installation page.
PYTHON ?= python3
TORCH ?= torch==2.13.0
WORKERS ?= 2
BIN := .venv/bin
PYTEST := $(BIN)/pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-all check bench runs parity cards clean

# PyTorch is installed first and by itself, so that nothing else can choose its build.
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
	@echo "The figure is demo/reconstruction.png. With a released checkpoint, mae_visualize_vit_base.pth for example:"
	@echo "  .venv/bin/mae-hf convert mae_visualize_vit_base.pth ./mae-vit-base"
	@echo "  .venv/bin/mae-hf reconstruct YOUR_PHOTO.jpg --model ./mae-vit-base --output out.png"

test: .venv/installed
	$(PYTEST) -m "not heavy"

test-all: .venv/complete
	$(PYTEST)

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
