"""Both ways between this package and transformers' own ViTMAE: the same weights give the same numbers."""

import json
import os
import pickle
import re
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import ViTMAEConfig, ViTMAEForPreTraining, ViTMAEModel

from mae_hf import MAEConfig, MAEForPreTraining, MAEModel, load_vit_mae
from mae_hf.checkpoint import CheckpointError
from mae_hf.cli import main
from mae_hf.key_maps import native_to_vit_mae
from mae_hf.vit_mae import config_to_vit_mae
from tests.helpers import HEAD_OPTIONS, run_program
from tests.helpers.borrowed_environment import borrowed_environment

SIZES = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "decoder_hidden_size": 32,
    "decoder_num_hidden_layers": 3,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 96,
    "norm_pix_loss": True,
}
FILES = {  # of a folder on the Hub: name of the weights, number of shards
    "safetensors": ("model.safetensors", 1),
    "sharded_safetensors": ("model.safetensors", 3),
    "bin": ("pytorch_model.bin", 1),
    "sharded_bin": ("pytorch_model.bin", 3),
}


def random_vit_mae(model_class, layer_norm_eps=1e-3):
    """No weight is zero or one, as ViTMAE initialises many, and the epsilon is large enough to be seen."""
    torch.manual_seed(0)
    model = model_class(ViTMAEConfig(**SIZES, layer_norm_eps=layer_norm_eps)).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def read(folder):
    """Weights in safetensors files, under the names of files on the Hub, which transformers 4 gave."""
    weights = {key: value for file in folder.glob("*.safetensors") for key, value in load_file(file).items()}
    return {key.replace("decoder_encoder.layer", "decoder_layers"): value for key, value in weights.items()}


def save(model, folder, form):
    """Save a ViTMAE in one of the forms and return its weights under the Hub's names."""
    model.save_pretrained(folder, max_shard_size="100KB" if form == "transformers_5_sharded" else "5GB")
    weights = read(folder)
    if form in FILES:
        (folder / "model.safetensors").unlink()
        write_as_transformers_4(weights, folder, *FILES[form])
    return weights


def write_as_transformers_4(weights, folder, name, num_shards):
    stem, suffix = name.split(".")
    shards = [f"{stem}-{n:05d}-of-{num_shards:05d}.{suffix}" for n in range(1, num_shards + 1)]
    files = [name] if num_shards == 1 else shards
    places = {key: files[n % num_shards] for n, key in enumerate(weights)}
    for file in files:
        part = {key: value for key, value in weights.items() if places[key] == file}
        torch.save(part, folder / file) if suffix == "bin" else save_file(part, folder / file, {"format": "pt"})
    if num_shards > 1:
        index = {"metadata": {"total_size": sum(v.nbytes for v in weights.values())}, "weight_map": places}
        (folder / f"{name}.index.json").write_text(json.dumps(index))


def run(model, inputs):
    with torch.no_grad():
        return {key: value for key, value in model(**inputs).items() if value is not None}


def convert(source, destination, *options):
    assert main(["convert", str(source), str(destination), *options]) == 0
    return destination


@pytest.fixture
def inputs(golden):
    return {key: golden[key] for key in ("pixel_values", "noise")}


@pytest.mark.parametrize(
    "options", [[], ["--norm-pix-loss"], ["--max-shard-size", "100KB"]], ids=["plain", "norm", "shards"]
)
def test_transformers_loads_a_written_model(tiny_model, golden, inputs, reference, tmp_path, options):
    folder = convert(reference / "tiny" / "full.pth", tmp_path / "out", "--to", "vit_mae", *HEAD_OPTIONS, *options)
    model, info = ViTMAEForPreTraining.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()) and model.config.layer_norm_eps == 1e-6
    assert_close(read(folder), save(model, tmp_path / "saved", "transformers_5"), atol=0, rtol=0)
    norm_pix_loss = "--norm-pix-loss" in options
    theirs, ours = run(model, inputs), run(tiny_model(norm_pix_loss=norm_pix_loss), inputs)
    assert set(theirs) == set(ours) == {"loss", "logits", "mask", "ids_restore"}
    assert_close(theirs, ours, atol=1e-5, rtol=0)
    assert_close(theirs["logits"], golden["mask_0.75.pred"], atol=1e-5, rtol=0)
    loss = golden["mask_0.75.loss_norm_pix" if norm_pix_loss else "mask_0.75.loss"]
    assert_close(theirs["loss"], loss, atol=1e-5, rtol=0)


def test_transformers_loads_a_written_encoder(tiny_model, golden, inputs, reference, tmp_path):
    folder = convert(reference / "tiny" / "encoder.pth", tmp_path / "out", "--to", "vit_mae", *HEAD_OPTIONS[:2])
    model, info = ViTMAEModel.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()) and model.config.layer_norm_eps == 1e-6
    assert_close(read(folder), save(model, tmp_path / "saved", "transformers_5"), atol=0, rtol=0)
    theirs, ours = run(model, inputs), run(tiny_model().mae, {**inputs, "mask_ratio": 0.75})
    assert set(theirs) == set(ours) == {"last_hidden_state", "mask", "ids_restore"}
    assert_close(theirs, ours, atol=1e-5, rtol=0)
    assert_close(theirs["last_hidden_state"], golden["mask_0.75.latent"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("form", ["transformers_5", "transformers_5_sharded", *FILES])
def test_a_vit_mae_in_any_form_keeps_its_weights_and_numbers(inputs, tmp_path, form):
    theirs = random_vit_mae(ViTMAEForPreTraining)
    weights = save(theirs, tmp_path / "vit_mae", form)
    converted = convert(tmp_path / "vit_mae", tmp_path / "out")
    models = load_vit_mae(tmp_path / "vit_mae"), MAEForPreTraining.from_pretrained(converted)
    for model in models:
        assert_close(native_to_vit_mae(model.state_dict()), weights, atol=0, rtol=0)
        assert_close(run(model, inputs), run(theirs, inputs), atol=1e-5, rtol=0)


@pytest.mark.parametrize("form", ["transformers_5", *FILES])
def test_a_lone_encoder_of_vit_mae_keeps_its_weights_and_numbers(inputs, tmp_path, form):
    theirs = random_vit_mae(ViTMAEModel)
    weights = {f"vit.{key}": value for key, value in save(theirs, tmp_path / "vit_mae", form).items()}
    converted = convert(tmp_path / "vit_mae", tmp_path / "out")
    for model in (load_vit_mae(tmp_path / "vit_mae", MAEModel), MAEModel.from_pretrained(converted)):
        native = {f"mae.{key}": value for key, value in model.state_dict().items()}
        assert_close(native_to_vit_mae(native), weights, atol=0, rtol=0)
        assert_close(run(model, {**inputs, "mask_ratio": 0.75}), run(theirs, inputs), atol=1e-5, rtol=0)


def test_the_encoder_of_a_whole_vit_mae_can_be_loaded_alone(inputs, tmp_path):
    theirs = random_vit_mae(ViTMAEForPreTraining)
    theirs.save_pretrained(tmp_path)
    model, info = load_vit_mae(tmp_path, MAEModel, output_loading_info=True)
    assert not any(info.values())
    assert_close(run(model, {**inputs, "mask_ratio": 0.75}), run(theirs.vit, inputs), atol=1e-5, rtol=0)


def test_a_lone_encoder_as_a_whole_model_warns_of_the_decoder(tmp_path):
    random_vit_mae(ViTMAEModel).save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="encoder-only weights"):
        load_vit_mae(tmp_path)


def test_there_and_back_changes_no_bit(tmp_path):
    weights = save(random_vit_mae(ViTMAEForPreTraining), tmp_path / "vit_mae", "bin")
    official = convert(tmp_path / "vit_mae", tmp_path / "official.pth", "--to", "official", "--norm-pix-loss")
    options = ["--num-attention-heads", "4", "--decoder-num-attention-heads", "2", "--norm-pix-loss"]
    back = convert(official, tmp_path / "back", "--to", "vit_mae", *options)
    assert_close(load_file(back / "model.safetensors"), weights, atol=0, rtol=0)


def test_default_epsilon_of_vit_mae_is_kept_with_a_warning(inputs, tmp_path, capsys):
    theirs = random_vit_mae(ViTMAEForPreTraining, layer_norm_eps=1e-12)
    theirs.save_pretrained(tmp_path / "vit_mae")
    with pytest.warns(UserWarning, match="layer_norm_eps is 1e-12, ViTMAE's default, and is kept") as caught:
        loaded = load_vit_mae(tmp_path / "vit_mae")
    assert [Path(warning.filename) for warning in caught] == [Path(__file__)]
    converted = convert(tmp_path / "vit_mae", tmp_path / "out")
    error = capsys.readouterr().err
    assert error.startswith("mae-hf: warning: layer_norm_eps is 1e-12") and error.count("\n") == 1
    for model in (loaded, MAEForPreTraining.from_pretrained(converted)):
        assert model.config.layer_norm_eps == 1e-12
        assert_close(run(model, inputs), run(theirs, inputs), atol=1e-5, rtol=0)


def test_epsilon_can_be_given_and_then_nothing_is_warned_of(tmp_path):
    random_vit_mae(ViTMAEForPreTraining, layer_norm_eps=1e-12).save_pretrained(tmp_path)
    model = load_vit_mae(tmp_path, layer_norm_eps=1e-6)  # a warning would be an error
    assert model.config.layer_norm_eps == 1e-6
    assert {module.eps for module in model.modules() if isinstance(module, torch.nn.LayerNorm)} == {1e-6}


class RunsACommand:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def save_zip(weights, evil, path):
    torch.save({**weights, "evil": evil}, path)


def save_legacy(weights, evil, path):
    torch.save({**weights, "evil": evil}, path, _use_new_zipfile_serialization=False)


def save_pickle(_, evil, path):
    path.write_bytes(pickle.dumps(evil, protocol=2))


@pytest.mark.parametrize("write", [save_zip, save_legacy, save_pickle])
def test_code_in_a_bin_file_never_runs(tmp_path, capsys, write):
    folder, trace = tmp_path / "vit_mae", tmp_path / "trace"
    weights = save(random_vit_mae(ViTMAEForPreTraining), folder, "bin")
    write(weights, RunsACommand(f"touch {trace}"), folder / "pytorch_model.bin")
    refusal = f"{folder / 'pytorch_model.bin'} contains {os.system.__module__}.system besides weights"
    with pytest.raises(CheckpointError, match=re.escape(refusal)):
        load_vit_mae(folder)
    assert main(["convert", str(folder), str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert refusal in error and error.count("\n") == 1
    assert not trace.exists() and not (tmp_path / "out").exists()
    with suppress(RuntimeError):  # a bare pickle is no PyTorch file, which is noticed too late
        torch.load(folder / "pytorch_model.bin", weights_only=False)
    assert trace.exists()  # the trap was a real one


@pytest.mark.parametrize("form", ["sharded_safetensors", "sharded_bin"])
@pytest.mark.parametrize("absolute", [False, True])
def test_index_that_names_a_file_elsewhere_is_refused(tmp_path, capsys, form, absolute):
    folder = tmp_path / "vit_mae"
    save(random_vit_mae(ViTMAEForPreTraining), folder, form)
    index = next(folder.glob("*.index.json"))
    content = json.loads(index.read_text())
    shard = next(iter(content["weight_map"].values()))
    evil = tmp_path / f"evil{Path(shard).suffix}"
    (folder / shard).rename(evil)  # with the right weights in it
    named = str(evil) if absolute else f"../{evil.name}"
    index.write_text(index.read_text().replace(shard, named))
    with pytest.raises(CheckpointError, match=re.escape(f"its index names '{named}', which is not a file")):
        load_vit_mae(folder)
    assert main(["convert", str(folder), str(tmp_path / "out")]) == 1
    assert f"'{named}'" in capsys.readouterr().err


def test_weights_that_no_vit_mae_has_are_refused_by_name(tmp_path):
    weights = save(random_vit_mae(ViTMAEForPreTraining), tmp_path, "safetensors")
    del weights["vit.encoder.layer.0.attention.attention.key.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        CheckpointError, match=r"unexpected keys \(2\): vit.encoder.layer.0.attention.attention.query.weight"
    ):
        load_vit_mae(tmp_path)


def test_missing_weights_are_refused_by_name_and_not_made_up(tmp_path):
    weights = save(random_vit_mae(ViTMAEForPreTraining), tmp_path, "safetensors")
    del weights["decoder.decoder_pred.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"missing keys \(1\): decoder.pred.weight"):
        load_vit_mae(tmp_path)


def test_another_image_size_says_what_to_do(tmp_path):
    random_vit_mae(ViTMAEForPreTraining).save_pretrained(tmp_path)
    for size in ((16, 64), 48):
        with pytest.raises(ValueError, match=r"made for image size 32, .*model.set_image_size"):
            load_vit_mae(tmp_path, image_size=size)


def test_whole_numbers_go_where_vit_mae_takes_fractions_only():
    made = config_to_vit_mae(MAEConfig(mask_ratio=0, initializer_range=0, layer_norm_eps=1))
    assert (made.mask_ratio, made.initializer_range, made.layer_norm_eps) == (0.0, 0.0, 1.0)


def test_arguments_that_would_be_ignored_and_places_that_are_none_are_refused(tmp_path):
    for name in ("subfolder", "variant", "use_safetensors", "config"):
        with pytest.raises(ValueError, match=f"load_vit_mae does not support {name}"):
            load_vit_mae(tmp_path, **{name: "x"})
    with pytest.raises(CheckpointError, match=r"nowhere does not exist, and is not a valid Hub id"):
        load_vit_mae(tmp_path / "nowhere")


@pytest.fixture(scope="module")
def transformers_4():
    """A Python with transformers 4, and this one's PyTorch."""
    with tempfile.TemporaryDirectory() as folder:
        python, _ = borrowed_environment(folder, "transformers==4.57.6")
        yield python, "4.57.6"


@pytest.fixture(scope="module")
def transformers_5():
    return sys.executable, transformers.__version__


@pytest.mark.heavy
@pytest.mark.parametrize("library", ["transformers_4", "transformers_5"])
@pytest.mark.parametrize("name", ["full", "encoder"])
def test_written_folder_in_another_process(request, tiny_model, inputs, reference, tmp_path, library, name):
    heads = HEAD_OPTIONS if name == "full" else HEAD_OPTIONS[:2]
    folder = convert(reference / "tiny" / f"{name}.pth", tmp_path / "folder", "--to", "vit_mae", *heads)
    save_file(inputs, tmp_path / "inputs.safetensors")
    python, version = request.getfixturevalue(library)
    arguments = [version, torch.__file__, folder, tmp_path / "inputs.safetensors", tmp_path / "out"]
    run_program("run_vit_mae", *arguments, python=python, flags=["-I"])
    ours = tiny_model() if name == "full" else tiny_model().mae
    outputs = run(ours, {**inputs, "mask_ratio": 0.75})
    assert_close(load_file(tmp_path / "out" / "outputs.safetensors"), outputs, atol=1e-5, rtol=0)
    for saved in (tmp_path / "out").glob("*/"):  # what it saves comes back
        model = load_vit_mae(saved, type(ours))
        assert_close(dict(model.state_dict()), dict(ours.state_dict()), atol=0, rtol=0)
