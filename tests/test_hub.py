"""The Hub as users use it, by the real client in child processes: it reads HF_ENDPOINT when it is imported."""

import json

import pytest
import torch

from mae_hf import MAEForImageClassification, MAEForPreTraining, MAEModel
from mae_hf.cli import main
from mae_hf.image_processor import image_processor
from mae_hf.remote_code import AUTO_MAP, code_files
from tests.helpers import CHELSEA, HEAD_OPTIONS, run_program
from tests.helpers.hub_server import Commit, Repository

MODELS = {"encoder": MAEModel, "pretraining": MAEForPreTraining, "classifier": MAEForImageClassification}


@pytest.fixture
def run(hub, tmp_path):
    """Runs a command of tests/programs/hub_models.py with this Hub and a cache in `home`."""

    def run(*command, home="home", **changes):
        environment = hub.environment(tmp_path / home) | changes
        flags = ["-W", "error::UserWarning"]
        run_program("hub_models", *command, flags=flags, env=environment, cwd=tmp_path)

    return run


@pytest.fixture
def folders(tiny_config, tmp_path):
    """A folder with one model of each class and its processor."""
    for name, model_class in MODELS.items():
        torch.manual_seed(0)
        model = model_class(tiny_config(num_labels=5))
        model.save_pretrained(tmp_path / "models" / name)
        image_processor(model.config).save_pretrained(tmp_path / "models" / name)
    return tmp_path / "models"


def commit_of(sha, folder):
    return Commit(sha, {path.name: path.read_bytes() for path in folder.iterdir()})


def test_models_go_to_the_hub_in_shards_come_back_to_the_bit_and_stay_offline(hub, run, folders, tmp_path):
    run("push", folders, home="author")
    for name in MODELS:
        assert hub.repos[f"someone/{name}"].private
        files = hub.repos[f"someone/{name}"].commits[-1].files
        assert {"config.json", "preprocessor_config.json", "README.md"} <= files.keys()
        assert "model.safetensors.index.json" in files and "model.safetensors" not in files
        assert len([file for file in files if file.endswith(".safetensors")]) > 1
    run("load", folders, tmp_path / "online.png")
    hub.shutdown()
    hub.server_close()
    run("load", folders, tmp_path / "offline.png", HF_HUB_OFFLINE="1", HF_TOKEN="")
    command = ["reconstruct", str(CHELSEA), "--model", str(folders / "pretraining")]
    assert main([*command, "--output", str(tmp_path / "folder.png")]) == 0
    figures = [(tmp_path / f"{name}.png").read_bytes() for name in ("folder", "online", "offline")]
    assert figures[0] == figures[1] == figures[2]


def test_older_weights_are_loaded_by_their_commit(hub, run, folders, fresh, tmp_path):
    """The newer ones have another image size: config and weights must come from the same commit."""
    model = fresh(image_size=64, norm_pix_loss=True)
    torch.nn.init.normal_(model.mae.cls_token)
    model.save_pretrained(tmp_path / "newer")
    commits = [commit_of("1" * 40, folders / "pretraining"), commit_of("2" * 40, tmp_path / "newer")]
    hub.repos["someone/model"] = Repository(False, commits)
    run("load_revisions", folders / "pretraining", tmp_path / "newer")


def test_private_models_need_a_token(reference, hub, run, folders, tmp_path):
    convert = ["convert", str(reference / "tiny" / "full.pth"), *HEAD_OPTIONS]
    assert main([*convert, str(folders / "vit_mae"), "--to", "vit_mae"]) == 0
    assert main([*convert, str(tmp_path / "converted")]) == 0
    for name in (*MODELS, "vit_mae"):
        hub.repos[f"someone/{name}"] = Repository(True, [commit_of("1" * 40, folders / name)])
    run("load_private", folders, tmp_path / "converted", HF_TOKEN="")


def test_repositories_with_code_load_by_every_auto_class_and_are_pushed_again_with_it(hub, run, folders, tmp_path):
    """Where the package cannot be imported; `AutoBackbone` accepts ids of the Hub but no folders."""
    run("push_with_code", folders)
    run_program("hub_remote_code", env=hub.environment(tmp_path / "elsewhere"))
    for name in ("MAEModel", "MAEForPreTraining", "MAEForImageClassification", "MAEBackbone"):
        first, again = (hub.repos[f"someone/{prefix}{name}"].commits[-1].files for prefix in ("", "again-"))
        assert {file.name for file in code_files()} < first.keys() == again.keys()
        assert first["model.safetensors"] == again["model.safetensors"]
        assert json.loads(again["config.json"])["auto_map"] == AUTO_MAP
    run("load_backbone")
