"""Every official kind, from the official layout to every other and back, bit for bit."""

import json
import re
import shutil
from collections import OrderedDict

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.golden_weights import golden_tensor, read_manifest
from mae_hf import MAEConfig, MAEForPreTraining, MAEModel
from mae_hf.checkpoint import CheckpointError
from mae_hf.conversion import convert, inspect, verify
from mae_hf.conversion.convert import differences
from mae_hf.conversion.layouts import LAYOUTS, Layout
from tests.helpers import HEADS
from tests.helpers import TINY as SMALL

KINDS = ["pretrain", "pretrain_full", "finetuned", "finetuned_cls", "linprobe"]
TINY = {"pretrain": "encoder", "pretrain_full": "full"}  # names of the tiny files where they differ


def load(path):
    return torch.load(path, weights_only=True, mmap=True)["model"]


def assert_same_file(found, wanted):
    """Keys, order, dtypes and bits."""
    found, wanted = load(found), load(wanted)
    assert type(found) is OrderedDict and list(found) == list(wanted)
    assert differences(wanted, found) == []


def go_round(source, kind, folder, heads=HEADS):
    """From a `.pth` to every layout that has a place for its kind, and back."""
    convert(source, folder / "native", **heads)
    convert(folder / "native", folder / "back.pth", to="official")
    assert_same_file(folder / "back.pth", source)
    if kind in ("pretrain", "pretrain_full"):
        convert(folder / "native", folder / "vit_mae", to="vit_mae")
        convert(folder / "vit_mae", folder / "from_vit_mae")
        assert verify(source, folder / "vit_mae") == verify(source, folder / "from_vit_mae") == []
        assert verify(folder / "from_vit_mae", folder / "native") == []


@pytest.mark.parametrize("kind", KINDS)
def test_tiny_models_go_round(reference, tmp_path, kind):
    go_round(reference / "tiny" / f"{TINY.get(kind, kind)}.pth", kind, tmp_path)


def test_tiny_encoder_goes_to_timm_and_back(reference, tmp_path):
    source = reference / "tiny" / "encoder.pth"
    convert(source, tmp_path / "timm", to="timm", **HEADS)
    convert(tmp_path / "timm", tmp_path / "native")  # heads and sizes are in timm's config
    assert verify(source, tmp_path / "timm") == verify(source, tmp_path / "native") == []
    config = MAEConfig.from_pretrained(tmp_path / "native")
    assert (config.num_attention_heads, config.patch_size, config.image_size) == (4, 8, 32)


def test_pretraining_model_leaves_its_decoder_behind_on_the_way_to_timm_and_says_so(reference, tmp_path):
    with pytest.warns(UserWarning, match="does not hold the decoder, which is left out"):
        convert(reference / "tiny" / "full.pth", tmp_path / "timm", to="timm", **HEADS)
    lost = verify(reference / "tiny" / "full.pth", tmp_path / "timm")
    assert len(lost) == 32 and all(line.startswith("decoder.") and line.endswith("is missing") for line in lost)


def test_card_of_a_model_that_left_its_decoder_behind_speaks_of_an_encoder(reference, tmp_path):
    with pytest.warns(UserWarning, match="does not hold the decoder, which is left out"):
        convert(reference / "tiny" / "full.pth", tmp_path / "timm", to="timm", **HEADS)
    card = (tmp_path / "timm" / "README.md").read_text()
    assert "encoder only, no decoder" in card and "pretraining model" not in card
    assert "reports its tensors as missing" in card and "compares again" not in card


@pytest.mark.parametrize("layout", ["vit_mae", "timm"])
def test_layouts_without_a_head_refuse_classifiers(reference, tmp_path, layout):
    with pytest.raises(CheckpointError, match=f"the {layout} layout cannot hold a classifier"):
        convert(reference / "tiny" / "linprobe.pth", tmp_path / "out", to=layout, **HEADS)
    assert list(tmp_path.iterdir()) == []


def test_what_a_layout_has_no_place_for_is_said(reference, tmp_path):
    convert(reference / "tiny" / "full.pth", tmp_path / "native", **HEADS, norm_pix_loss=True)
    changes = {"layer_norm_eps": 1e-5, "mask_ratio": 0.5, "drop_path_rate": 0.1, "pooling": "cls"}
    MAEConfig.from_pretrained(tmp_path / "native", **changes).save_pretrained(tmp_path / "native")
    lost = {
        "official": {*changes, "norm_pix_loss"},
        "vit_mae": {"drop_path_rate", "pooling"},
        "timm": {*changes, "decoder"},
    }
    for layout, names in lost.items():
        with pytest.warns(UserWarning) as warned:
            convert(tmp_path / "native", tmp_path / layout, to=layout)
        found = [re.search(r"does not store (\w+)=|does not hold the (decoder)", str(w.message)) for w in warned]
        assert {match[1] or match[2] for match in found} == names


def test_size_and_heads_that_reading_would_take_wrongly_are_said_with_their_options(tmp_path):
    sizes = {"hidden_size": 768, "num_attention_heads": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    sizes |= {"decoder_hidden_size": 512, "decoder_num_attention_heads": 8, "decoder_num_hidden_layers": 1}
    MAEForPreTraining(MAEConfig(**sizes, image_size=(16, 64))).save_pretrained(tmp_path / "native")
    with pytest.warns(UserWarning) as warned:
        convert(tmp_path / "native", tmp_path / "back.pth", to="official")
    lines = " ".join(str(warning.message) for warning in warned)
    for option in ("--image-size 16 64", "--num-attention-heads 8, or 12", "--decoder-num-attention-heads 8, or 16"):
        assert option in lines


def test_query_key_and_value_of_different_dtypes_are_refused(reference, tmp_path):
    convert(reference / "tiny" / "full.pth", tmp_path / "vit_mae", to="vit_mae", **HEADS)
    path = tmp_path / "vit_mae" / "model.safetensors"
    weights = {key: value.clone() for key, value in load_file(path).items()}
    key = "vit.encoder.layer.0.attention.attention.query.weight"
    weights[key] = weights[key].half()
    save_file(weights, path)
    with pytest.raises(CheckpointError, match=rf"query, key and value differ in dtype \(3\): {key[:40]}"):
        convert(tmp_path / "vit_mae", tmp_path / "out")


def test_weight_under_two_names_is_refused(reference, tiny_weights, tmp_path):
    convert(reference / "tiny" / "full.pth", tmp_path / "vit_mae", to="vit_mae", **HEADS)
    path = tmp_path / "vit_mae" / "model.safetensors"
    weights = {key: value.clone() for key, value in load_file(path).items()}
    name = "layer.0.attention.attention.query.weight"
    weights[f"decoder.decoder_encoder.{name}"] = weights[f"decoder.decoder_layers.{name[6:]}"].clone()
    save_file(weights, path)
    with pytest.raises(CheckpointError, match=r"layer.*\.query.weight and another key of the file map"):
        convert(tmp_path / "vit_mae", tmp_path / "out")
    torch.save({"model": tiny_weights | {"mae.cls_token": torch.zeros(1, 1, 64)}}, tmp_path / "two.pth")
    with pytest.raises(CheckpointError, match="cls_token and another key of the file map to the same weight"):
        verify(tmp_path / "two.pth", reference / "tiny" / "full.pth")


def test_mixed_dtypes_are_kept_and_loaded_without_loss(tiny_weights, tmp_path):
    tiny_weights |= {key: value.half() for key, value in tiny_weights.items() if key.startswith("decoder_blocks")}
    torch.save({"model": tiny_weights}, tmp_path / "mixed.pth")
    convert(tmp_path / "mixed.pth", tmp_path / "out", **HEADS)
    assert verify(tmp_path / "mixed.pth", tmp_path / "out") == []
    loaded = MAEForPreTraining.from_pretrained(tmp_path / "out")
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    assert torch.equal(loaded.mae.cls_token, tiny_weights["cls_token"])


def test_names_of_classes_are_lost_on_the_way_to_the_official_layout_which_is_said(reference, tmp_path):
    convert(reference / "tiny" / "finetuned.pth", tmp_path / "native", **HEADS)
    convert(tmp_path / "native", tmp_path / "plain.pth", to="official")
    labels = {n: f"digit {n}" for n in range(10)}
    MAEConfig.from_pretrained(tmp_path / "native", id2label=labels).save_pretrained(tmp_path / "native")
    with pytest.warns(UserWarning, match="does not store the names of the classes"):
        convert(tmp_path / "native", tmp_path / "named.pth", to="official")


def test_what_is_no_field_of_the_model_does_not_come_along(reference, tmp_path):
    convert(reference / "tiny" / "full.pth", tmp_path / "native", **HEADS)
    path = tmp_path / "native" / "config.json"
    others = {"auto_map": {"AutoModel": "modeling_mae.MAEModel"}, "num_labels": 10**9, "use_return_dict": 1}
    path.write_text(json.dumps(json.loads(path.read_text()) | others))
    convert(tmp_path / "native", tmp_path / "again")
    assert not others.keys() & json.loads((tmp_path / "again" / "config.json").read_text()).keys()


def test_vit_mae_cannot_have_images_that_are_not_square(reference, tmp_path):
    with pytest.raises(CheckpointError, match="ViTMAE supports square images only"):
        convert(reference / "tiny" / "full.pth", tmp_path / "out", to="vit_mae", image_size=(16, 64), **HEADS)


def test_keys_of_two_layouts_in_one_file_are_refused(reference, tiny_weights, tmp_path):
    tiny_weights["mae.encoder.norm.weight"] = tiny_weights.pop("norm.weight")
    torch.save({"model": tiny_weights}, tmp_path / "mixed.pth")
    for command in (verify, convert):
        with pytest.raises(CheckpointError, match="another layout than official: mae.encoder.norm.weight"):
            command(tmp_path / "mixed.pth", tmp_path / "out")


def test_folder_with_the_keys_of_two_layouts_is_refused(reference, tiny_weights, tmp_path):
    convert(reference / "tiny" / "full.pth", tmp_path / "native", **HEADS)
    path = tmp_path / "native" / "model.safetensors"
    save_file(load_file(path) | tiny_weights, path)
    for command in (inspect, lambda source: convert(source, tmp_path / "out")):
        with pytest.raises(CheckpointError, match="contains the keys of several layouts: official, mae_hf"):
            command(tmp_path / "native")


def test_query_key_and_value_without_dimensions_are_refused(reference, tmp_path):
    convert(reference / "tiny" / "full.pth", tmp_path / "vit_mae", to="vit_mae", **HEADS)
    path = tmp_path / "vit_mae" / "model.safetensors"
    bias = "vit.encoder.layer.0.attention.attention.{}.bias"
    odd = {bias.format(part): torch.zeros(()) for part in ("query", "key", "value")}
    save_file(load_file(path) | odd | {"vit.layernorm.bias": torch.zeros(())}, path)
    with pytest.raises(CheckpointError, match="contradictory shapes"):
        convert(tmp_path / "vit_mae", tmp_path / "out")


def test_config_of_timm_states_the_sizes_of_models_that_were_not_released(tmp_path):
    MAEModel(MAEConfig.from_preset("tiny")).save_pretrained(tmp_path / "tiny")
    convert(tmp_path / "tiny", tmp_path / "timm", to="timm")
    config = json.loads((tmp_path / "timm" / "config.json").read_text())
    assert config["architecture"] == "vit_base_patch16_224" and config["model_args"]["embed_dim"] == 192
    assert MAEConfig.from_pretrained(tmp_path / "tiny").num_attention_heads == config["model_args"]["num_heads"] == 3


def config_of_other_library(kind, config, license):
    known = {"hidden_act", "image_size", "mask_ratio", *SMALL}
    fields = {name: value for name, value in config.to_dict().items() if name in known}
    return {"model_type": "other", "target": "normalised" if config.norm_pix_loss else "raw", "sizes": fields}


def read_config_of_other_library(fields):
    return MAEConfig(**fields["sizes"], norm_pix_loss=fields["target"] == "normalised")


def test_layout_needs_nothing_but_its_object(reference, tmp_path, monkeypatch):
    layout = Layout(
        name="other",
        class_names={"pretraining": "OtherMAE", "encoder": "OtherEncoder"},
        to_native=lambda weights: {key.removeprefix("other/").replace("/", "."): x for key, x in weights.items()},
        from_native=lambda weights: {"other/" + key.replace(".", "/"): x for key, x in weights.items()},
        is_config=lambda fields: fields.get("model_type") == "other",
        config_of=read_config_of_other_library,
        config_to=config_of_other_library,
        library_name="other",
        loader=("import other", 'other.{0}.load("{1}")'),
    )
    monkeypatch.setitem(LAYOUTS, "other", layout)
    source = reference / "tiny" / "full.pth"
    convert(source, tmp_path / "other", to="other", norm_pix_loss=True, **HEADS)
    done = convert(tmp_path / "other", tmp_path / "native")
    assert done.config.norm_pix_loss and done.norm_pix_loss_from == "the config of the folder"
    assert verify(source, tmp_path / "other") == verify(source, tmp_path / "native") == []
    assert inspect(tmp_path / "other")["layout"] == "other"
    assert 'other.OtherMAE.load("FOLDER")' in (tmp_path / "other" / "README.md").read_text()
    with pytest.raises(CheckpointError, match="the other layout cannot hold a classifier"):
        convert(reference / "tiny" / "finetuned.pth", tmp_path / "classifier", to="other", **HEADS)


def test_unknown_layout_lists_the_known_ones(reference, tmp_path):
    with pytest.raises(CheckpointError, match="unknown layout 'vitmae': known are official, mae_hf, vit_mae, timm"):
        convert(reference / "tiny" / "full.pth", tmp_path / "out", to="vitmae", **HEADS)


@pytest.fixture
def scratch(tmp_path):
    """A folder that is emptied after a failure, too: huge in five layouts fills 13 GB."""
    yield tmp_path
    shutil.rmtree(tmp_path)


@pytest.fixture(scope="module", params=["base", "large", "huge"])
def recipe(request):
    """Writes official files of one size with the recipe's weights."""
    made = {}

    def write(kind, path):
        entries = read_manifest(request.param, kind)
        for entry in entries:
            if entry["key"] not in made:
                made[entry["key"]] = golden_tensor(entry["key"], entry["shape"], entry["dtype"].removeprefix("torch."))
        torch.save({"model": OrderedDict((entry["key"], made[entry["key"]]) for entry in entries)}, path)
        return path

    write.preset = request.param
    return write


@pytest.mark.heavy
@pytest.mark.parametrize("kind", KINDS)
def test_three_sizes_go_round(recipe, scratch, kind):
    go_round(recipe(kind, scratch / "source.pth"), kind, scratch, heads={})


@pytest.mark.heavy
def test_folders_for_timm_are_those_that_timm_writes(recipe, reference, scratch):
    """Loading in timm itself is not tested."""
    source = recipe("pretrain", scratch / f"mae_pretrain_vit_{recipe.preset}.pth")
    convert(source, scratch / "timm", to="timm")
    entries = read_manifest(recipe.preset, "timm")
    found = load_file(scratch / "timm" / "model.safetensors")
    assert {key: (list(value.shape), value.dtype) for key, value in found.items()} == {
        entry["key"]: (entry["shape"], torch.float32) for entry in entries
    }
    wanted = reference / "manifests" / f"{recipe.preset}_timm_config.json"
    assert json.loads((scratch / "timm" / "config.json").read_text()) == json.loads(wanted.read_text())
    convert(scratch / "timm", scratch / "back.pth", to="official")
    assert_same_file(scratch / "back.pth", source)
