"""Transformers' Auto classes: registered by `import mae_hf`, and by the code that a folder carries."""

import json
import os
import sys
from importlib import import_module

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel

import mae_hf
from mae_hf import MAEBackbone, MAEForImageClassification, MAEForPreTraining, MAEModel
from mae_hf.cli import main
from mae_hf.remote_code import AUTO_MAP, code_files
from tests.helpers import HEAD_OPTIONS, run_program

CLASSES = {
    "AutoModel": MAEModel,
    "AutoModelForPreTraining": MAEForPreTraining,
    "AutoModelForImageClassification": MAEForImageClassification,
    "AutoBackbone": MAEBackbone,
}


def run_alone(name, home, *arguments):
    """Run a program with its cache in `home`, which can import the package only because it is installed."""
    run_program(name, *arguments, env={**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""})


@pytest.fixture
def folders(tiny_config, tmp_path):
    """A folder with code for each Auto class, saved by the class that it creates; all have the same encoder weights."""
    torch.manual_seed(0)
    config = tiny_config(pooling="cls", out_indices=[1])
    encoder = MAEModel(config).state_dict()
    for name, model_class in CLASSES.items():
        model = model_class(tiny_config(pooling="cls", out_indices=[1]))
        getattr(model, "mae", model).load_state_dict(encoder)
        model.config.auto_map = AUTO_MAP
        model.save_pretrained(tmp_path / "folders" / name)
    return tmp_path / "folders"


def test_every_auto_class_makes_its_class_both_ways(folders, tmp_path):
    """Registered and remote, from a folder that any class saved, and from the folders that the remote classes save."""
    found = {}
    for way, source in (("registered", folders), ("remote", folders), ("remote", tmp_path / "remote")):
        target = tmp_path / (way if source == folders else "again")
        target.mkdir()
        run_alone("auto_classes", tmp_path / f"home-{target.name}", way, source, target)
        found[target.name] = load_file(target / "numbers.safetensors")
        (target / "numbers.safetensors").unlink()
    first = found["registered"]["AutoModel AutoModel features"]
    assert len(found["registered"]) == 4 * 4 + 4
    for numbers in found.values():
        assert numbers.keys() == found["registered"].keys()
        for key, value in numbers.items():
            assert torch.equal(value, first if key.endswith("features") else found["registered"][key]), key
    for folder in (tmp_path / "again").iterdir():  # complete after the second save
        assert json.loads((folder / "config.json").read_text())["auto_map"] == AUTO_MAP
        for file in code_files():
            assert (folder / file.name).read_text() == file.read_text()


def test_package_comes_before_a_class_of_transformers_for_the_same_model_type(folders, tmp_path):
    run_alone("model_type_taken", tmp_path / "home", folders / "AutoModelForPreTraining")


def test_map_of_a_folder_with_code_is_what_the_package_registers():
    for name, reference in AUTO_MAP.items():
        module, _, target = reference.partition(".")
        assert getattr(import_module(f"mae_hf.{module}"), target) is getattr(mae_hf, target)
        if name != "AutoConfig":
            assert CLASSES[name].__name__ == target
            auto = getattr(sys.modules["transformers"], name)
            assert isinstance(auto.from_config(mae_hf.MAEConfig(hidden_size=12, depth=1)), CLASSES[name])


def test_with_code_converts_to_a_folder_that_loads_without_the_package(reference, tmp_path):
    folder = tmp_path / "folders" / "AutoModelForPreTraining"
    command = ["convert", str(reference / "tiny" / "full.pth"), str(folder), *HEAD_OPTIONS]
    assert main([*command, "--with-code"]) == 0
    assert "trust_remote_code=True" in (folder / "README.md").read_text()
    (tmp_path / "remote").mkdir()
    run_alone("auto_classes", tmp_path / "home", "remote", tmp_path / "folders", tmp_path / "remote")
    numbers = load_file(tmp_path / "remote" / "numbers.safetensors")
    ours = AutoModel.from_pretrained(folder)
    images = torch.linspace(-2, 2, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32)
    with torch.no_grad():
        features = ours(images).last_hidden_state
    assert torch.equal(numbers["AutoModelForPreTraining AutoModel features"], features)
    assert main([*command, "--overwrite"]) == 0  # a conversion without code removes it
    assert not list(folder.glob("*.py")) and "auto_map" not in json.loads((folder / "config.json").read_text())


def test_overwriting_takes_code_for_ours_only_where_the_config_names_it(reference, tmp_path, capsys):
    command = ["convert", str(reference / "tiny" / "encoder.pth"), str(tmp_path / "x"), *HEAD_OPTIONS[:2]]
    assert main(command) == 0
    (tmp_path / "x" / "encoder.py").write_text("mine")
    assert main([*command, "--overwrite", "--with-code"]) == 1
    assert "contains encoder.py, which no conversion writes" in capsys.readouterr().err
    assert (tmp_path / "x" / "encoder.py").read_text() == "mine"


@pytest.mark.parametrize(("file", "auto"), [("encoder", "AutoModel"), ("finetuned", "AutoModelForImageClassification")])
def test_card_of_a_folder_with_code_names_its_auto_class(reference, tmp_path, capsys, file, auto):
    command = ["convert", str(reference / "tiny" / f"{file}.pth"), str(tmp_path / "x"), *HEAD_OPTIONS[:2]]
    assert main([*command, "--with-code"]) == 0
    assert f"with {auto}.from_pretrained(" in capsys.readouterr().out
    card = (tmp_path / "x" / "README.md").read_text()
    assert f'{auto}.from_pretrained("FOLDER", trust_remote_code=True)' in card
    assert "whose code is in this folder, is under Apache-2.0" in card


def test_code_goes_into_folders_of_this_package_only(reference, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["convert", str(reference / "tiny" / "full.pth"), str(tmp_path / "x"), "--with-code", "--to", "vit_mae"])
    assert "--with-code is for folders of this package" in capsys.readouterr().err
    with pytest.raises(mae_hf.checkpoint.CheckpointError, match="with_code is for the mae_hf layout only"):
        mae_hf.conversion.convert(reference / "tiny" / "full.pth", tmp_path / "x", to="official", with_code=True)
    assert not (tmp_path / "x").exists()


def test_plain_saving_writes_no_code(fresh, tmp_path):
    fresh().save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.py")) and "auto_map" not in (tmp_path / "config.json").read_text()


def test_registering_for_an_auto_class_saves_the_code_and_the_complete_map(fresh, tmp_path, monkeypatch):
    """As in transformers: `MAEForPreTraining.register_for_auto_class("AutoModelForPreTraining")`."""
    monkeypatch.setattr(MAEForPreTraining, "_auto_class", None)  # restored afterwards
    MAEForPreTraining.register_for_auto_class("AutoModelForPreTraining")
    fresh().save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["auto_map"] == AUTO_MAP
    assert {file.name for file in tmp_path.glob("*.py")} == {file.name for file in code_files()}


def test_registering_the_configuration_alone_saves_all_code_as_well(fresh, tmp_path, monkeypatch):
    monkeypatch.setattr(mae_hf.MAEConfig, "_auto_class", None)  # restored afterwards
    mae_hf.MAEConfig.register_for_auto_class()
    fresh().save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["auto_map"] == AUTO_MAP
    assert {file.name for file in tmp_path.glob("*.py")} == {file.name for file in code_files()}


def test_classes_made_of_ours_are_saved_with_their_own_code(tmp_path):
    """Also if one of their files has the name of one of ours."""
    run_alone("save_custom_model", tmp_path / "home", tmp_path / "saved")
