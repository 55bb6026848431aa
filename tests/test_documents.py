"""The code blocks of the documents run as written, one after the other, and their links lead somewhere."""

import itertools
import operator
import os
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from benchmarks.golden_weights import write_official
from mae_hf import MAEConfig, MAEForPreTraining
from mae_hf.cli import main
from tests.helpers import HEAD_OPTIONS, ROOT, run_command, run_program
from tests.helpers.hub_server import Commit, Repository

FOLDERS = ("docs", "examples", "benchmarks", "model_cards")
DOCUMENTS = [str(path.relative_to(ROOT)) for folder in FOLDERS for path in sorted((ROOT / folder).glob("**/*.md"))]
DOCUMENTS += ["README.md", "CHANGELOG.md"]
PAGES = [name for name in DOCUMENTS if name == "README.md" or name.startswith(("docs/", "examples/"))]
WITH_LIBRARIES = ("docs/train.md", "docs/transformers.md")  # accelerate, datasets, PEFT, ONNX
WITH_RELEASED_FILES = ("README.md", "docs/convert.md")


def blocks(document, *languages):
    """The code blocks of a document in these languages, as (language, text)."""
    text = (ROOT / document).read_text()
    found = re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    assert text.count("```") == 2 * len(found)  # there is no block of another form
    assert {language for language, _ in found} <= {"python", "sh", "bash", "bibtex"}
    return [(language, text) for language, text in found if language in languages]


@pytest.fixture
def after_demo(tmp_path, monkeypatch):
    """A copy of the repository after `make demo`."""
    monkeypatch.chdir(tmp_path)
    for name in ("examples", "Makefile", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).symlink_to(ROOT / name)
    assert main(["convert", "examples/demo/mae_demo.pth", "demo/mae-demo", *HEAD_OPTIONS]) == 0
    return tmp_path


@pytest.fixture
def run(hub, after_demo, tmp_path_factory):
    """Runs blocks in child processes that use the Hub of the tests; make runs with `--dry-run`."""
    home = tmp_path_factory.mktemp("home")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = hub.environment(home) | {"PATH": path, "TORCH_HOME": str(home), "MAKEFLAGS": "--dry-run"}
    environment["CUDA_VISIBLE_DEVICES"] = ""  # scripts refuse to choose among several GPUs

    def run(document, *languages):
        for language, group in itertools.groupby(blocks(document, *languages), key=operator.itemgetter(0)):
            texts = [text for _, text in group]
            if language == "python":
                run_program("run_blocks", *texts, env=environment, cwd=after_demo)
                continue
            for text in texts:
                run_command("sh", "-ec", text, env=environment, cwd=after_demo)

    run.home = home
    return run


@pytest.fixture
def released(run, hub, after_demo):
    """Weights made by a recipe under the names of released files, in the folder, the download cache and on the Hub."""
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


def pages_with(*languages, but=()):
    return [name for name in PAGES if name not in but and blocks(name, *languages)]


@pytest.mark.parametrize("document", pages_with("python", but=WITH_LIBRARIES))
def test_python_runs_as_written(after_demo, document):
    session = {"__name__": "document"}
    for _, block in blocks(document, "python"):
        exec(compile(block, document, "exec"), session)


@pytest.mark.heavy
@pytest.mark.parametrize("document", pages_with("sh", but=WITH_LIBRARIES))
def test_commands_run_as_written(request, run, document):
    if document in WITH_RELEASED_FILES:
        request.getfixturevalue("released")
    run(document, "sh")


@pytest.mark.heavy
@pytest.mark.parametrize("document", WITH_LIBRARIES)
def test_python_and_commands_run_as_written_with_the_libraries_of_the_examples(run, document):
    run(document, "python", "sh")


@pytest.mark.heavy  # accelerate, datasets
def test_launch_lines_parse_and_have_the_effective_batch_that_they_state():
    """They need GPUs and ImageNet, so they cannot run; they are the blocks of bash."""
    from transformers import HfArgumentParser

    from finetune import FineTuning
    from pretrain import PreTraining

    checked = 0
    for _, block in blocks("docs/train.md", "bash"):
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


def test_rows_of_the_guide_are_the_sizes_that_are_built():
    rows = re.findall(r"^\| (tiny|small) .*", (ROOT / "docs/use.md").read_text(), flags=re.MULTILINE)
    assert rows == ["tiny", "small"]
    for size in rows:
        config = MAEConfig.from_preset(size)
        with torch.device("meta"):
            model = MAEForPreTraining(config)
        encoder = f"{config.hidden_size}, {config.num_hidden_layers}, {config.num_attention_heads}"
        decoder = f"{config.decoder_hidden_size}, {config.decoder_num_hidden_layers}"
        decoder = f"{decoder}, {config.decoder_num_attention_heads}"
        counts = f"{model.mae.num_parameters():,} | {model.num_parameters():,}"
        row = f"| {size} | {config.patch_size} | {encoder} | {decoder} | {counts} |\n"
        assert row in (ROOT / "docs/use.md").read_text()


def prose(document):
    """The text of a document without its code blocks."""
    return re.sub(r"^```.*?^```", "", (ROOT / document).read_text(), flags=re.DOTALL | re.MULTILINE)


def anchors(document):
    """The anchors that GitHub gives to the headings of a document."""
    headings = re.findall(r"^#+ (.+)$", prose(document), flags=re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document):
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(document)):
        name, _, anchor = link.partition("#")
        if link.startswith("https://"):
            continue
        target = ((ROOT / document).parent / name).resolve() if name else ROOT / document
        assert target.exists() and target.is_relative_to(ROOT), link
        assert not anchor or anchor in anchors(target.relative_to(ROOT)), link


def test_pages_are_linked_from_the_readme():
    linked = re.findall(r"\]\(([^)#\s]+)", prose("README.md"))
    assert {name for name in DOCUMENTS if name.startswith("docs/")} <= set(linked)
