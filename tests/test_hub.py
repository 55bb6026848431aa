"""The Hub as users use it, by the real client, in processes of their own: it reads HF_ENDPOINT when it is imported."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mae_hf import MAEForImageClassification, MAEForPreTraining, MAEModel
from mae_hf.cli import main
from mae_hf.image_processor import image_processor
from mae_hf.remote_code import AUTO_MAP, code_files
from tests.hub_server import Commit, Repository

CHELSEA = str(Path(__file__).resolve().parent.parent / "examples" / "demo" / "chelsea.png")
MODELS = {"encoder": MAEModel, "pretraining": MAEForPreTraining, "classifier": MAEForImageClassification}
HELPERS = """
import contextlib, io, sys, torch
import mae_hf
from mae_hf import MAEForImageClassification, MAEForPreTraining, MAEModel
from mae_hf.cli import main
from transformers import AutoConfig, AutoModel, AutoModelForImageClassification
from transformers import AutoModelForPreTraining, pipeline
from transformers.models.auto.image_processing_auto import AutoImageProcessor

AUTO = dict(encoder=AutoModel, pretraining=AutoModelForPreTraining, classifier=AutoModelForImageClassification)
OWN = dict(encoder=MAEModel, pretraining=MAEForPreTraining, classifier=MAEForImageClassification)

def settings(config):
    return config.to_dict() | {"_name_or_path": None, "dtype": None}

def same(found, wanted):
    assert type(found) is type(wanted)
    found, wanted = found.state_dict(), wanted.state_dict()
    return found.keys() == wanted.keys() and all(torch.equal(found[key], wanted[key]) for key in wanted)

def refused(error_class, call, *arguments, **options):
    try:
        call(*arguments, **options)
    except error_class as error:
        return str(error)
    raise AssertionError("it was not refused")

def reconstruct(model, output):
    with contextlib.redirect_stderr(io.StringIO()) as said:
        status = main(["reconstruct", CHELSEA, "--model", model, "--output", output])
    return status, said.getvalue()

CHELSEA = """ + repr(CHELSEA)
PUSH_ALL = """
for name, model_class in OWN.items():
    folder = sys.argv[1] + "/" + name
    model_class.from_pretrained(folder).push_to_hub("someone/" + name, max_shard_size="100KB", private=True)
    AutoImageProcessor.from_pretrained(folder).push_to_hub("someone/" + name)
"""
LOAD_ALL = """
folders, picture = sys.argv[1:]
for name, model_class in OWN.items():
    of_hub, of_folder = "someone/" + name, folders + "/" + name
    wanted = model_class.from_pretrained(of_folder)
    assert same(model_class.from_pretrained(of_hub), wanted)
    assert same(AUTO[name].from_pretrained(of_hub), wanted)
    assert settings(AutoConfig.from_pretrained(of_hub)) == settings(wanted.config)
    found, wanted = map(AutoImageProcessor.from_pretrained, (of_hub, of_folder))
    assert found.to_dict() == wanted.to_dict()
for task, name in {"image-classification": "classifier", "image-feature-extraction": "pretraining"}.items():
    found, wanted = (pipeline(task, model=where + "/" + name)(CHELSEA) for where in ("someone", folders))
    assert found == wanted
assert reconstruct("someone/pretraining", picture) == (0, "")
status, said = reconstruct("someone/nothing", "nothing.png")
assert status == 1 and said.count(chr(10)) == 1 and "someone/nothing" in said, said
"""


@pytest.fixture
def run(hub, tmp_path):
    """Runs a script after the helpers above in a process that knows the hub alone, with the cache in `home`."""

    def run(text, *arguments, home="home", **changes):
        command = [sys.executable, "-W", "error::UserWarning", "-c", f"{HELPERS}\n{text}", *map(str, arguments)]
        environment = hub.environment(tmp_path / home) | changes
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

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


PUSH_WITH_CODE = """
import mae_hf
from mae_hf.remote_code import AUTO_MAP
kinds = (mae_hf.MAEModel, mae_hf.MAEForPreTraining, mae_hf.MAEForImageClassification, mae_hf.MAEBackbone)
torch.manual_seed(0)
for kind in kinds:
    config = mae_hf.MAEConfig.from_pretrained(sys.argv[1] + "/pretraining", pooling="cls", out_indices=[1])
    config.auto_map = AUTO_MAP
    kind(config).push_to_hub("someone/" + kind.__name__)
"""
LOAD_REMOTE = """
import sys, warnings
sys.modules["mae_hf"] = None  # makes every import of it fail
import torch, transformers
warnings.simplefilter("ignore")  # of parts that a repository lacks
images = torch.linspace(-2, 2, 3 * 32 * 32).reshape(1, 3, 32, 32)
for saved_by in ("MAEModel", "MAEForPreTraining", "MAEForImageClassification", "MAEBackbone"):
    found = []
    for name in ("AutoModel", "AutoModelForPreTraining", "AutoModelForImageClassification", "AutoBackbone"):
        model = getattr(transformers, name).from_pretrained("someone/" + saved_by, trust_remote_code=True)
        assert type(model).__module__.startswith("transformers_modules.someone."), type(model)
        found.append(getattr(model, "mae", model)(images).last_hidden_state)
        if type(model).__name__ == saved_by:
            model.push_to_hub("someone/again-" + saved_by)
    assert all(torch.equal(features, found[0]) for features in found), saved_by
"""


def commit_of(sha, folder):
    return Commit(sha, {path.name: path.read_bytes() for path in folder.iterdir()})


def test_models_go_to_the_hub_in_shards_come_back_to_the_bit_and_stay_offline(hub, run, folders, tmp_path):
    run(PUSH_ALL, folders, home="author")
    for name in MODELS:
        assert hub.repos[f"someone/{name}"].private
        files = hub.repos[f"someone/{name}"].commits[-1].files
        assert {"config.json", "preprocessor_config.json", "README.md"} <= files.keys()
        assert "model.safetensors.index.json" in files and "model.safetensors" not in files
        assert len([file for file in files if file.endswith(".safetensors")]) > 1
    run(LOAD_ALL, folders, tmp_path / "online.png")
    hub.shutdown()
    hub.server_close()
    run(LOAD_ALL, folders, tmp_path / "offline.png", HF_HUB_OFFLINE="1", HF_TOKEN="")
    command = ["reconstruct", CHELSEA, "--model", str(folders / "pretraining")]
    assert main([*command, "--output", str(tmp_path / "folder.png")]) == 0
    pictures = [(tmp_path / f"{name}.png").read_bytes() for name in ("folder", "online", "offline")]
    assert pictures[0] == pictures[1] == pictures[2]


def test_older_weights_are_had_by_their_commit(hub, run, folders, fresh, tmp_path):
    """The newer ones are of another size: the config is read from the same commit as the weights."""
    model = fresh(image_size=64, norm_pix_loss=True)
    torch.nn.init.normal_(model.mae.cls_token)
    model.save_pretrained(tmp_path / "newer")
    commits = [commit_of("1" * 40, folders / "pretraining"), commit_of("2" * 40, tmp_path / "newer")]
    hub.repos["someone/model"] = Repository(False, commits)
    load = """
older, newer = (MAEForPreTraining.from_pretrained(folder) for folder in sys.argv[1:])
for load in (MAEForPreTraining.from_pretrained, AutoModelForPreTraining.from_pretrained):
    assert same(load("someone/model"), newer)
    assert same(load("someone/model", revision="main"), newer)
    assert same(load("someone/model", revision="2" * 40), newer)
    found = load("someone/model", revision="1" * 40)
    assert same(found, older) and settings(found.config) == settings(older.config) != settings(newer.config)
assert same(AutoModel.from_pretrained("someone/model", revision="1" * 40), older.mae)
assert same(MAEForPreTraining.from_pretrained("someone/model", image_size=32, revision="1" * 40), older)
assert same(MAEForPreTraining.from_pretrained("someone/model", image_size=(64, 64)), newer)
text = refused(ValueError, MAEForPreTraining.from_pretrained, "someone/model", image_size=64, revision="1" * 40)
assert "the checkpoint was made for image size 32, not 64" in text, text
text = refused(ValueError, AutoModel.from_pretrained, "someone/model", image_size=32)
assert "the checkpoint was made for image size 64, not 32" in text, text
text = refused(OSError, MAEForPreTraining.from_pretrained, "someone/model", revision="3" * 40)
assert "is not a valid git identifier" in text, text
"""
    run(load, folders / "pretraining", tmp_path / "newer")


def test_private_models_need_a_token(reference, hub, run, folders, tmp_path):
    convert = ["convert", str(reference / "tiny" / "full.pth"), "--num-attention-heads", "4"]
    convert += ["--decoder-num-attention-heads", "4"]
    assert main([*convert, str(folders / "vit_mae"), "--to", "vit_mae"]) == 0
    assert main([*convert, str(tmp_path / "converted")]) == 0
    for name in (*MODELS, "vit_mae"):
        hub.repos[f"someone/{name}"] = Repository(True, [commit_of("1" * 40, folders / name)])
    load = """
status, said = reconstruct("someone/pretraining", "nothing.png")
assert status == 1 and said.count(chr(10)) == 1, said
assert "someone/pretraining is not a local folder and is not a valid model identifier" in said, said
for name, model_class in OWN.items():
    wanted, repo = model_class.from_pretrained(sys.argv[1] + "/" + name), "someone/" + name
    for load in (model_class.from_pretrained, AUTO[name].from_pretrained, AutoImageProcessor.from_pretrained):
        text = refused(OSError, load, repo)
        assert repo in text and "private" in text and "token" in text, text
    text = refused(OSError, model_class.from_pretrained, repo, image_size=32)
    assert "If this is a private repository, make sure to pass a token" in text, text
    assert repo in refused(OSError, model_class.from_pretrained, repo, token="hf_wrong")
    assert same(model_class.from_pretrained(repo, token="hf_test", image_size=32), wanted)
    assert same(AUTO[name].from_pretrained(repo, token="hf_test"), wanted)
    text = refused(ValueError, model_class.from_pretrained, repo, token="hf_test", image_size=64)
    assert "the checkpoint was made for image size 32, not 64" in text, text
assert "someone/vit_mae" in refused(OSError, MAEForPreTraining.from_vit_mae, "someone/vit_mae")
found = MAEForPreTraining.from_vit_mae("someone/vit_mae", token="hf_test", revision="1" * 40)
assert same(found, MAEForPreTraining.from_pretrained(sys.argv[2]))
extract = pipeline("image-feature-extraction", model="someone/encoder", token="hf_test")
assert extract(CHELSEA) == pipeline("image-feature-extraction", model=sys.argv[1] + "/encoder")(CHELSEA)
"""
    run(load, folders, tmp_path / "converted", HF_TOKEN="")


def test_repositories_with_code_load_by_every_auto_class_and_are_pushed_again_with_it(hub, run, folders, tmp_path):
    """Where the package cannot be imported; `AutoBackbone` takes ids of the Hub, and no folders."""
    run(PUSH_WITH_CODE, folders)
    environment = hub.environment(tmp_path / "elsewhere")
    done = subprocess.run([sys.executable, "-c", LOAD_REMOTE], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    for name in ("MAEModel", "MAEForPreTraining", "MAEForImageClassification", "MAEBackbone"):
        first, again = (hub.repos[f"someone/{prefix}{name}"].commits[-1].files for prefix in ("", "again-"))
        assert {file.name for file in code_files()} < first.keys() == again.keys()
        assert first["model.safetensors"] == again["model.safetensors"]
        assert json.loads(again["config.json"])["auto_map"] == AUTO_MAP
    registered = """
from transformers import AutoBackbone
backbone = AutoBackbone.from_pretrained("someone/MAEForPreTraining", out_indices=[0, 2])
assert type(backbone) is mae_hf.MAEBackbone and backbone.out_features == ["stem", "stage2"]
assert same(backbone.mae, MAEModel.from_pretrained("someone/MAEForPreTraining"))
"""
    run(registered)
