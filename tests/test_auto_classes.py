"""Transformers' Auto classes: registered by `import mae_hf`, and by the code that a folder carries."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel

import mae_hf
from mae_hf import MAEBackbone, MAEForImageClassification, MAEForPreTraining, MAEModel
from mae_hf.cli import main
from mae_hf.remote_code import AUTO_MAP, code_files

CLASSES = {
    "AutoModel": MAEModel,
    "AutoModelForPreTraining": MAEForPreTraining,
    "AutoModelForImageClassification": MAEForImageClassification,
    "AutoBackbone": MAEBackbone,
}
# Every Auto class on every folder: which class it makes, what the encoder in it gives, and what the whole gives.
LOAD = """
import sys, warnings
from pathlib import Path
way, source, target = sys.argv[1:]
if way == "registered":
    import mae_hf
else:
    sys.modules["mae_hf"] = None  # makes every import of it fail
import torch, transformers
from safetensors.torch import save_file
warnings.simplefilter("ignore")  # of parts that a folder lacks
images = torch.linspace(-2, 2, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32)
options = {"trust_remote_code": True} if way == "remote" else {}
numbers = {}
for folder in sorted(Path(source).iterdir()):
    config = transformers.AutoConfig.from_pretrained(folder, **options)
    for name in ("AutoModel", "AutoModelForPreTraining", "AutoModelForImageClassification", "AutoBackbone"):
        auto = getattr(transformers, name)
        if name == "AutoBackbone":  # its from_pretrained takes ids of the Hub only: tests/test_hub.py
            model = type(auto.from_config(config, **options)).from_pretrained(folder)
        else:
            model = auto.from_pretrained(folder, **options)
        for made in (type(model), type(model.config)):
            assert made.__module__.startswith("mae_hf." if way == "registered" else "transformers_modules."), made
        encoder = getattr(model, "mae", model)
        numbers[f"{folder.name} {name} features"] = encoder(images).last_hidden_state
        if name == folder.name:
            noise = {"noise": torch.linspace(0, 1, 32).reshape(2, 16)} if "PreTraining" in name else {}
            out = model(images, **noise)
            numbers[f"{name} out"] = out.feature_maps[0] if name == "AutoBackbone" else out[0]
            model.save_pretrained(Path(target) / name)
save_file({key: value.contiguous() for key, value in numbers.items()}, Path(target) / "numbers.safetensors")
"""
FUTURE = """
import sys, transformers
from transformers.models import vit_mae
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_MAPPING
CONFIG_MAPPING._mapping["mae"], CONFIG_MAPPING._modules["mae"] = "ViTMAEConfig", vit_mae
MODEL_MAPPING._model_mapping["mae"], MODEL_MAPPING._modules["mae"] = "ViTMAEModel", vit_mae
names = ("AutoModel", "AutoModelForPreTraining", "AutoModelForImageClassification")
vit_mae.ViTMAEConfig.model_type = "mae"
assert type(transformers.AutoModel.from_config(transformers.AutoConfig.for_model("mae"))) is transformers.ViTMAEModel
config = transformers.AutoConfig.from_pretrained(sys.argv[1], trust_remote_code=True)
assert type(config).__module__.startswith("transformers_modules."), type(config)
for name in names:
    model = getattr(transformers, name).from_pretrained(sys.argv[1], trust_remote_code=True)
    assert type(model).__module__.startswith("transformers_modules."), type(model)
import mae_hf
config = transformers.AutoConfig.from_pretrained(sys.argv[1])
assert type(config) is mae_hf.MAEConfig, type(config)
for name in names:
    model = getattr(transformers, name).from_pretrained(sys.argv[1])
    assert type(model).__module__ == "mae_hf.modeling_mae", type(model)
assert type(transformers.AutoBackbone.from_config(config)) is mae_hf.MAEBackbone
"""


def run(script, home, *arguments):
    environment = {**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.fixture
def folders(tiny_config, tmp_path):
    """One folder with code for each Auto class, saved by the class that it makes; all share the encoder's weights."""
    torch.manual_seed(0)
    config = tiny_config(pooling="cls", out_indices=[1])
    encoder = MAEModel(config).state_dict()
    for name, made in CLASSES.items():
        model = made(tiny_config(pooling="cls", out_indices=[1]))
        getattr(model, "mae", model).load_state_dict(encoder)
        model.config.auto_map = AUTO_MAP
        model.save_pretrained(tmp_path / "folders" / name)
    return tmp_path / "folders"


def test_every_auto_class_makes_its_class_both_ways(folders, tmp_path):
    """Registered and remote, from a folder saved by any class, and from what the remote classes save."""
    found = {}
    for way, source in (("registered", folders), ("remote", folders), ("remote", tmp_path / "remote")):
        target = tmp_path / (way if source == folders else "again")
        target.mkdir()
        run(LOAD, tmp_path / f"home-{target.name}", way, source, target)
        found[target.name] = load_file(target / "numbers.safetensors")
        (target / "numbers.safetensors").unlink()
    first = found["registered"]["AutoModel AutoModel features"]
    assert len(found["registered"]) == 4 * 4 + 4
    for numbers in found.values():
        assert numbers.keys() == found["registered"].keys()
        for key, value in numbers.items():
            assert torch.equal(value, first if key.endswith("features") else found["registered"][key]), key
    for folder in (tmp_path / "again").iterdir():  # complete, the third time
        assert json.loads((folder / "config.json").read_text())["auto_map"] == AUTO_MAP
        for file in code_files():
            assert (folder / file.name).read_text() == file.read_text()


def test_package_comes_before_a_class_of_transformers_for_the_same_model_type(folders, tmp_path):
    run(FUTURE, tmp_path / "home", folders / "AutoModelForPreTraining")


def test_map_of_a_folder_with_code_is_what_the_package_registers():
    for name, reference in AUTO_MAP.items():
        module, _, made = reference.partition(".")
        assert getattr(__import__(f"mae_hf.{module}", fromlist=[made]), made) is getattr(mae_hf, made)
        if name != "AutoConfig":
            assert CLASSES[name].__name__ == made
            auto = getattr(sys.modules["transformers"], name)
            assert isinstance(auto.from_config(mae_hf.MAEConfig(hidden_size=12, depth=1)), CLASSES[name])


def test_with_code_converts_to_a_folder_that_loads_without_the_package(reference, tmp_path):
    heads = ["--num-attention-heads", "4", "--decoder-num-attention-heads", "4"]
    folder = tmp_path / "folders" / "AutoModelForPreTraining"
    command = ["convert", str(reference / "tiny" / "full.pth"), str(folder), *heads]
    assert main([*command, "--with-code"]) == 0
    assert "trust_remote_code=True" in (folder / "README.md").read_text()
    (tmp_path / "remote").mkdir()
    run(LOAD, tmp_path / "home", "remote", tmp_path / "folders", tmp_path / "remote")
    numbers = load_file(tmp_path / "remote" / "numbers.safetensors")
    ours = AutoModel.from_pretrained(folder)
    images = torch.linspace(-2, 2, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32)
    with torch.no_grad():
        features = ours(images).last_hidden_state
    assert torch.equal(numbers["AutoModelForPreTraining AutoModel features"], features)
    assert main([*command, "--overwrite"]) == 0  # without code, it takes the code away
    assert not list(folder.glob("*.py")) and "auto_map" not in json.loads((folder / "config.json").read_text())


def test_overwriting_takes_code_for_ours_only_where_the_config_names_it(reference, tmp_path, capsys):
    command = ["convert", str(reference / "tiny" / "encoder.pth"), str(tmp_path / "x"), "--num-attention-heads", "4"]
    assert main(command) == 0
    (tmp_path / "x" / "encoder.py").write_text("mine")
    assert main([*command, "--overwrite", "--with-code"]) == 1
    assert "holds encoder.py, which no conversion writes" in capsys.readouterr().err
    assert (tmp_path / "x" / "encoder.py").read_text() == "mine"


@pytest.mark.parametrize(("file", "auto"), [("encoder", "AutoModel"), ("finetuned", "AutoModelForImageClassification")])
def test_card_of_a_folder_with_code_names_its_auto_class(reference, tmp_path, capsys, file, auto):
    command = ["convert", str(reference / "tiny" / f"{file}.pth"), str(tmp_path / "x"), "--num-attention-heads", "4"]
    assert main([*command, "--with-code"]) == 0
    assert f"with {auto}.from_pretrained(" in capsys.readouterr().out
    card = (tmp_path / "x" / "README.md").read_text()
    assert f'{auto}.from_pretrained("FOLDER", trust_remote_code=True)' in card
    assert "whose code lies in this folder, is under Apache-2.0" in card


def test_code_goes_into_folders_of_this_package_only(reference, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["convert", str(reference / "tiny" / "full.pth"), str(tmp_path / "x"), "--with-code", "--to", "vit_mae"])
    assert "--with-code is for folders of this package" in capsys.readouterr().err
    with pytest.raises(mae_hf.checkpoint.CheckpointError, match="the code is that of the mae_hf layout"):
        mae_hf.conversion.convert(reference / "tiny" / "full.pth", tmp_path / "x", to="official", with_code=True)
    assert not (tmp_path / "x").exists()


def test_plain_saving_writes_no_code(fresh, tmp_path):
    fresh().save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.py")) and "auto_map" not in (tmp_path / "config.json").read_text()


def test_registering_for_an_auto_class_saves_the_code_and_the_complete_map(fresh, tmp_path, monkeypatch):
    """The way of transformers: `MAEForPreTraining.register_for_auto_class("AutoModelForPreTraining")`."""
    monkeypatch.setattr(MAEForPreTraining, "_auto_class", None)  # put back afterwards
    MAEForPreTraining.register_for_auto_class("AutoModelForPreTraining")
    fresh().save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["auto_map"] == AUTO_MAP
    assert {file.name for file in tmp_path.glob("*.py")} == {file.name for file in code_files()}


def test_registering_the_configuration_alone_saves_all_code_as_well(fresh, tmp_path, monkeypatch):
    monkeypatch.setattr(mae_hf.MAEConfig, "_auto_class", None)  # put back afterwards
    mae_hf.MAEConfig.register_for_auto_class()
    fresh().save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["auto_map"] == AUTO_MAP
    assert {file.name for file in tmp_path.glob("*.py")} == {file.name for file in code_files()}


OWN_CODE = """
import sys, transformers
sys.path.insert(0, sys.argv[1])
from own.modeling_own import OwnConfig, OwnModel
OwnConfig.register_for_auto_class()
OwnModel.register_for_auto_class("AutoModel")
OwnModel(OwnConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2)).save_pretrained(sys.argv[2])
model = transformers.AutoModel.from_pretrained(sys.argv[2], trust_remote_code=True)
assert model.answer == 7 and list(model.config.auto_map) == ["AutoConfig", "AutoModel"], model.config.auto_map
"""


def test_classes_made_of_ours_are_saved_with_their_own_code(tmp_path):
    """Also where a file of theirs has the name of one of ours."""
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "attention.py").write_text("ANSWER = 7")
    (tmp_path / "own" / "modeling_own.py").write_text("""
from mae_hf import MAEConfig, MAEModel
from .attention import ANSWER

class OwnConfig(MAEConfig):
    model_type = "own"

class OwnModel(MAEModel):
    config_class, answer = OwnConfig, ANSWER
    config: OwnConfig
""")
    run(OWN_CODE, tmp_path / "home", tmp_path, tmp_path / "saved")
