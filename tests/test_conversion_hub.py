"""To the Hub and back by the real client, in processes of their own: it reads HF_ENDPOINT when it is imported."""

import io
import subprocess
import sys

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from mae_hf import MAEForPreTraining
from tests.hub_server import Commit, Repository

HEADS = ["--num-attention-heads", "4", "--decoder-num-attention-heads", "4"]
LOAD = """
import sys, torch
from mae_hf import MAEForPreTraining
for repo_id, wanted in zip(sys.argv[1::2], sys.argv[2::2]):
    model, info = MAEForPreTraining.from_pretrained(repo_id, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"], info
    wanted = MAEForPreTraining.from_pretrained(wanted).state_dict()
    assert model.state_dict().keys() == wanted.keys()
    assert all(torch.equal(value, wanted[key]) for key, value in model.state_dict().items())
"""


@pytest.fixture
def run(hub, tmp_path):
    """Runs Python in a process that knows the hub alone, each time with an empty cache."""

    def run(*arguments, status=0):
        run.count += 1
        environment = hub.environment(tmp_path / f"home{run.count}")
        done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True)
        assert done.returncode == status, done.stderr
        return done

    run.count = 0
    return run


def test_conversion_goes_to_the_hub_and_comes_back_with_its_card(reference, hub, run, tmp_path):
    source, folder = str(reference / "tiny" / "full.pth"), tmp_path / "full"
    convert_command = ["-m", "mae_hf.cli", "convert", source, str(folder), *HEADS]
    sharded = ["--max-shard-size", "100KB", "--push-to-hub", "someone/full", "--private"]
    assert "someone/full" in run(*convert_command, *sharded).stdout
    run(*convert_command, "--overwrite", "--push-to-hub", "someone/full")  # must not leave the shards there
    repository = hub.repos["someone/full"]
    assert repository.private
    files = repository.commits[-1].files
    assert files.keys() - {".gitattributes"} == {path.name for path in folder.iterdir()}
    assert files["README.md"].decode() == (folder / "README.md").read_text()
    assert ModelCard(files["README.md"].decode()).data.library_name == "transformers"
    push = "import mae_hf, sys; mae_hf.MAEForPreTraining.from_pretrained(sys.argv[1]).push_to_hub(sys.argv[2])"
    run("-c", push, str(folder), "someone/pushed")
    card = hub.repos["someone/pushed"].commits[-1].files["README.md"]
    assert ModelCard(card.decode()).data.library_name == "transformers"  # a plain one, written by transformers
    run("-c", LOAD, "someone/full", str(folder), "someone/pushed", str(folder))


def test_repository_of_a_vit_mae_is_converted_and_loaded_by_its_name(reference, tiny_model, hub, run, tmp_path):
    source = str(reference / "tiny" / "full.pth")
    to_hub = ["--to", "vit_mae", "--push-to-hub", "someone/vit-mae"]
    run("-m", "mae_hf.cli", "convert", source, str(tmp_path / "vit_mae"), *HEADS, *to_hub)
    run("-m", "mae_hf.cli", "convert", "someone/vit-mae", str(tmp_path / "back"))
    card = (tmp_path / "back" / "README.md").read_text()
    assert "\n# vit-mae\n" in card and "converted from | `someone/vit-mae`, vit_mae layout" in card
    found = MAEForPreTraining.from_pretrained(tmp_path / "back").state_dict()
    assert all(torch.equal(found[key], value) for key, value in tiny_model().state_dict().items())
    hub.repos["someone/pickled"] = pickled(tmp_path / "vit_mae")
    load = "import sys; from mae_hf import MAEModel; [MAEModel.from_vit_mae(n).save_pretrained(f) for n, f in PAIRS]"
    pairs = [("someone/vit-mae", str(tmp_path / "a")), ("someone/pickled", str(tmp_path / "b"))]
    run("-c", f"PAIRS = {pairs}; {load}")
    for _, folder in pairs:
        found = load_file(f"{folder}/model.safetensors")
        assert all(torch.equal(found[key], value) for key, value in tiny_model().mae.state_dict().items())


def pickled(folder):
    """The repository of a ViTMAE that has no safetensors, as transformers 4 wrote many."""
    weights = io.BytesIO()
    torch.save(load_file(folder / "model.safetensors"), weights)
    files = {"config.json": (folder / "config.json").read_bytes(), "pytorch_model.bin": weights.getvalue()}
    return Repository(False, [Commit("1" * 40, files)])


def test_what_the_hub_refuses_is_one_line_and_leaves_the_folder(reference, hub, run, tmp_path):
    command = ["-m", "mae_hf.cli", "convert", str(reference / "tiny" / "full.pth"), str(tmp_path / "full"), *HEADS]
    done = run(*command, "--push-to-hub", "not a name", status=1)
    assert "is complete, but was not uploaded to not a name" in done.stderr and done.stderr.count("\n") == 1
    assert (tmp_path / "full" / "config.json").exists()
    create = "import huggingface_hub; huggingface_hub.create_repo('someone/public')"
    run("-c", create)
    done = run(*command, "--overwrite", "--push-to-hub", "someone/public", "--private", status=1)
    assert "not uploaded to someone/public: the repository is there already and is public" in done.stderr
    assert len(hub.repos["someone/public"].commits) == 1
    done = run("-m", "mae_hf.cli", "inspect", "someone/nothing", status=1)
    assert "someone/nothing is no file or folder here, nor on the Hub" in done.stderr
    assert done.stderr.count("\n") == 1
