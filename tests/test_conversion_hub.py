"""To the Hub and back by the real client, in processes of their own: it reads HF_ENDPOINT when it is imported."""

import io
import itertools

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from mae_hf import MAEForPreTraining
from tests.helpers import HEAD_OPTIONS, run_program, run_python
from tests.helpers.hub_server import Commit, Repository


@pytest.fixture
def environments(hub, tmp_path):
    """Environments that know this Hub alone, each with an empty cache."""
    return (hub.environment(tmp_path / f"home{number}") for number in itertools.count())


@pytest.fixture
def convert(environments):
    """Runs `mae-hf convert`."""
    return lambda *arguments, **how: run_python(
        "-m", "mae_hf.cli", "convert", *arguments, env=next(environments), **how
    )


@pytest.fixture
def run(environments):
    """Runs a command of tests/programs/converted_models.py."""
    return lambda *arguments: run_program("converted_models", *arguments, env=next(environments))


def test_conversion_goes_to_the_hub_and_comes_back_with_its_card(reference, hub, convert, run, tmp_path):
    folder = tmp_path / "full"
    arguments = [reference / "tiny" / "full.pth", folder, *HEAD_OPTIONS]
    sharded = ["--max-shard-size", "100KB", "--push-to-hub", "someone/full", "--private"]
    assert "someone/full" in convert(*arguments, *sharded).stdout
    convert(*arguments, "--overwrite", "--push-to-hub", "someone/full")  # must not leave the shards there
    repository = hub.repos["someone/full"]
    assert repository.private
    files = repository.commits[-1].files
    assert files.keys() - {".gitattributes"} == {path.name for path in folder.iterdir()}
    assert files["README.md"].decode() == (folder / "README.md").read_text()
    assert ModelCard(files["README.md"].decode()).data.library_name == "transformers"
    run("push", folder, "someone/pushed")
    card = hub.repos["someone/pushed"].commits[-1].files["README.md"]
    assert ModelCard(card.decode()).data.library_name == "transformers"  # a plain one, written by transformers
    run("compare", "someone/full", folder, "someone/pushed", folder)


def test_vit_mae_repository_is_converted_and_loaded_by_name(reference, tiny_model, hub, convert, run, tmp_path):
    to_hub = ["--to", "vit_mae", "--push-to-hub", "someone/vit-mae"]
    convert(reference / "tiny" / "full.pth", tmp_path / "vit_mae", *HEAD_OPTIONS, *to_hub)
    convert("someone/vit-mae", tmp_path / "back")
    card = (tmp_path / "back" / "README.md").read_text()
    assert "\n# vit-mae\n" in card and "converted from | `someone/vit-mae`, vit_mae layout" in card
    found = MAEForPreTraining.from_pretrained(tmp_path / "back").state_dict()
    assert all(torch.equal(found[key], value) for key, value in tiny_model().state_dict().items())
    hub.repos["someone/pickled"] = pickled(tmp_path / "vit_mae")
    for name in ("vit-mae", "pickled"):
        folder = tmp_path / f"encoder of {name}"
        run("load_encoder_of_vit_mae", f"someone/{name}", folder)
        found = load_file(folder / "model.safetensors")
        assert all(torch.equal(found[key], value) for key, value in tiny_model().mae.state_dict().items())


def pickled(folder):
    """The repository of a ViTMAE that has no safetensors, as transformers 4 wrote many."""
    weights = io.BytesIO()
    torch.save(load_file(folder / "model.safetensors"), weights)
    files = {"config.json": (folder / "config.json").read_bytes(), "pytorch_model.bin": weights.getvalue()}
    return Repository(False, [Commit("1" * 40, files)])


def test_what_the_hub_refuses_is_one_line_and_leaves_the_folder(reference, hub, convert, run, tmp_path):
    arguments = [reference / "tiny" / "full.pth", tmp_path / "full", *HEAD_OPTIONS]
    done = convert(*arguments, "--push-to-hub", "not a name", status=1)
    assert "full was not uploaded to not a name" in done.stderr and done.stderr.count("\n") == 1
    assert (tmp_path / "full" / "config.json").exists()
    run("create", "someone/public")
    done = convert(*arguments, "--overwrite", "--push-to-hub", "someone/public", "--private", status=1)
    assert "not uploaded to someone/public: the repository exists already and is public" in done.stderr
    assert len(hub.repos["someone/public"].commits) == 1
    done = convert("someone/nothing", tmp_path / "out", status=1)
    assert "someone/nothing is not a local file or folder, nor on the Hub" in done.stderr
    assert done.stderr.count("\n") == 1
