"""What the documents show runs as written, each block where those above it have run."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.recipe import write_official
from mae_hf.cli import main
from tests.hub_server import Commit, Repository

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "examples").glob("**/*.md"))
HEADS = ["--num-attention-heads", "4", "--decoder-num-attention-heads", "4"]


def blocks(document, *languages):
    """The blocks of code of a document as (language, text)."""
    text = (ROOT / document).read_text()
    found = re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    assert text.count("```") == 2 * len(found)  # none in another form
    assert {language for language, _ in found} <= {"python", "sh", "bash", "bibtex"}
    return [(language, text) for language, text in found if language in languages]


@pytest.fixture
def after_demo(tmp_path, monkeypatch):
    """The folder of the repository as `make demo` leaves it."""
    monkeypatch.chdir(tmp_path)
    for name in ("examples", "Makefile", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).symlink_to(ROOT / name)
    assert main(["convert", "examples/demo/mae_demo.pth", "demo/mae-demo", *HEADS]) == 0
    return tmp_path


@pytest.fixture
def run(hub, after_demo, tmp_path_factory):
    """Runs a block in a process of its own that knows a Hub on 127.0.0.1; of make, it runs what `--dry-run` does."""
    home = tmp_path_factory.mktemp("home")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = hub.environment(home) | {"PATH": path, "TORCH_HOME": str(home), "MAKEFLAGS": "--dry-run"}
    environment["CUDA_VISIBLE_DEVICES"] = ""  # of several GPUs, a script takes one that was chosen

    def run(language, text):
        command = {"python": [sys.executable, "-c", text], "sh": ["sh", "-ec", text]}[language]
        done = subprocess.run(command, env=environment, cwd=after_demo, capture_output=True, text=True)
        assert done.returncode == 0, f"{text}\n{done.stderr[-2000:]}"

    run.home = home
    return run


def test_python_of_the_readme_runs_as_written(after_demo):
    for _, block in blocks("README.md", "python"):
        exec(compile(block, "README.md", "exec"), {"__name__": "readme"})


@pytest.mark.heavy
def test_commands_of_the_readme_run_as_written(run, hub, after_demo):
    """With weights made by a recipe in the place of released ones, in the cache of downloads and on the Hub as well."""
    write_official("base", after_demo / "mae_visualize_vit_base.pth")
    write_official("base", after_demo / "mae_pretrain_vit_base.pth", "pretrain")
    for name in ("photo.jpg", "other.jpg"):
        Image.open("examples/demo/chelsea.png").save(name)
    cache = run.home / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    os.link("mae_visualize_vit_base.pth", cache / "mae_visualize_vit_base.pth")
    assert main(["convert", "mae_visualize_vit_base.pth", "hub", "--to", "vit_mae"]) == 0
    files = {path.name: path.read_bytes() for path in Path("hub").iterdir()}
    hub.repos["facebook/vit-mae-base"] = Repository(False, [Commit("1" * 40, files)])
    for block in blocks("README.md", "sh"):
        run(*block)


@pytest.mark.heavy  # PEFT, accelerate, ONNX
@pytest.mark.parametrize("document", EXAMPLES)
def test_examples_run_as_written(run, document):
    for block in blocks(document, "python", "sh"):
        run(*block)


@pytest.mark.heavy  # accelerate, datasets
def test_launch_lines_parse_and_have_the_effective_batch_that_they_state():
    """Those for GPUs and for ImageNet, blocks of bash, cannot run."""
    from transformers import HfArgumentParser

    from finetune import FineTuning
    from pretrain import PreTraining

    checked = 0
    for _, block in blocks("examples/README.md", "bash"):
        for product, command in re.findall(r"# effective batch (.*)\n((?:.*\\\n)*.*)", block):
            words = shlex.split(command.replace("\\\n", " "))
            script = next(i for i, word in enumerate(words) if word.startswith("examples/"))
            recipe = {"examples/pretrain.py": PreTraining, "examples/finetune.py": FineTuning}[words[script]]
            options = HfArgumentParser(recipe).parse_args(words[script + 1 :])
            processes, images, accumulated, batch = map(int, re.findall(r"\d+", product))
            assert processes * images * accumulated == batch
            assert options.per_device_train_batch_size == images
            assert options.gradient_accumulation_steps == accumulated
            launched = re.search(r"--(?:num_processes|nproc-per-node) (\d+)", command)
            nodes = re.search(r"--n?nodes[= ](\d+)", block)
            assert processes == int(launched[1] if launched else 1) * int(nodes[1] if nodes else 1)
            checked += 1
    assert checked == 8


def test_readme_opens_with_the_two_commands_and_eight_lines_of_python():
    (_, commands), (_, code) = blocks("README.md", "sh", "python")[:2]
    assert [line.split("#")[0].strip() for line in commands.splitlines()] == ["make demo", "make test"]
    assert len([line for line in code.splitlines() if line.strip()]) == 8


@pytest.mark.parametrize("document", ["README.md", "benchmarks/README.md", *EXAMPLES])
def test_links_lead_somewhere(document):
    for name in re.findall(r"\]\(([^)#:]+)\)", (ROOT / document).read_text()):
        assert ((ROOT / document).parent / name).exists(), name
