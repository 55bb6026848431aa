import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

from mae_hf.checkpoint import CheckpointError
from mae_hf.conversion import convert, inspect, verify
from mae_hf.conversion.source import read_source
from tests.helpers import HEADS

LAYOUTS = ["mae_hf", "vit_mae", "timm"]


@pytest.fixture
def folders(reference, tmp_path):
    """The tiny encoder in the layouts that are folders."""
    for layout in LAYOUTS:
        convert(reference / "tiny" / "encoder.pth", tmp_path / layout, to=layout, **HEADS)
    return tmp_path


@pytest.mark.parametrize("layout", LAYOUTS)
def test_folder_tells_its_layout_and_sizes(folders, layout):
    found = inspect(folders / layout)
    assert found["layout"] == layout and found["kind"].startswith("encoder")
    assert (found["width, depth, heads"], found["decoder"], found["image size"]) == ("64, 2, 4", "none", "32")
    assert found["parameters"] == "113,600" and found["released file"].startswith("not recognised")


def test_linear_probe_counts_no_running_statistics_as_parameters(reference):
    found = inspect(reference / "tiny" / "linprobe.pth")
    assert found["kind"] == "linprobe (linear probe)" and found["tensors"] == "35"
    assert found["parameters"] == inspect(reference / "tiny" / "finetuned_cls.pth")["parameters"]


@pytest.mark.parametrize("kind", ["finetuned", "finetuned_cls", "linprobe"])
def test_classifier_folder_tells_pooling_and_labels(reference, tmp_path, kind):
    done = convert(reference / "tiny" / f"{kind}.pth", tmp_path / "out", **HEADS)
    assert (done.config.num_labels, done.config.pooling) == (10, "mean" if kind == "finetuned" else "cls")
    assert done.config.linear_probe is (kind == "linprobe") and done.config.id2label[0] == "LABEL_0"
    assert done.layout.class_names[done.kind] == "MAEForImageClassification"


def test_head_of_a_thousand_classes_gets_the_names_of_imagenet(reference, tmp_path):
    weights = torch.load(reference / "tiny" / "finetuned.pth", weights_only=True)["model"]
    weights |= {"head.weight": torch.zeros(1000, 64), "head.bias": torch.zeros(1000)}
    torch.save({"model": weights}, tmp_path / "own.pth")
    config = convert(tmp_path / "own.pth", tmp_path / "out", **HEADS).config
    assert config.num_labels == 1000
    assert (config.id2label[0], config.id2label[999]) == (
        "tench, Tinca tinca",
        "toilet tissue, toilet paper, bathroom tissue",
    )
    assert config.label2id["tabby, tabby cat"] == 281


def test_name_that_would_break_a_table_is_made_plain(reference, tmp_path):
    odd = shutil.copy(reference / "tiny" / "encoder.pth", tmp_path / "a |\nb.pth")
    assert read_source(odd).name == "a b.pth"


def test_safetensors_file_with_official_keys_is_taken(reference, tmp_path):
    weights = torch.load(reference / "tiny" / "encoder.pth", weights_only=True)["model"]
    save_file(weights, tmp_path / "encoder.safetensors")
    assert verify(tmp_path / "encoder.safetensors", reference / "tiny" / "encoder.pth") == []
    assert not read_source(tmp_path / "encoder.safetensors").checksummed


def test_options_that_contradict_a_folder_are_refused(folders):
    for given, field in (
        ({"num_attention_heads": 8}, "num_attention_heads=4"),
        ({"image_size": (16, 64)}, r"image_size=\(32, 32\)"),
    ):
        with pytest.raises(CheckpointError, match=f"its config.json specifies {field}: leave out the option"):
            convert(folders / "mae_hf", folders / "out", **given)
        with pytest.raises(CheckpointError, match="leave out the option"):
            convert(folders / "timm", folders / "out", **given)
    convert(folders / "mae_hf", folders / "out", num_attention_heads=4, image_size=(32, 32))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"img_size": ["a", "b"]}, "a pair .height, width. of ints, got ..a', 'b'."),
        ({"img_size": [32]}, r"a pair .height, width. of ints, got .32"),
        ({"num_heads": "x"}, "num_heads must be a positive int, got 'x'"),
    ],
)
def test_config_of_timm_that_makes_no_sense_is_refused(folders, arguments, message):
    path = folders / "timm" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_args": arguments}))
    for command in (inspect, lambda source: convert(source, folders / "out")):
        with pytest.raises(CheckpointError, match=message):
            command(folders / "timm")


def test_fields_of_a_timm_config_are_no_training_arguments(folders):
    path = folders / "timm" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"norm_pix_loss": True, "mask_ratio": 0.5}))
    config = convert(folders / "timm", folders / "out", norm_pix_loss=False).config
    assert not config.norm_pix_loss and config.mask_ratio == 0.75


def test_licence_of_the_card_goes_along_unless_another_is_given(reference, folders):
    convert(reference / "tiny" / "full.pth", folders / "licensed", **HEADS, license="cc-by-nc-4.0")
    convert(folders / "licensed", folders / "kept", to="vit_mae")
    convert(folders / "licensed", folders / "given", to="vit_mae", license="mit")
    assert "\nlicense: cc-by-nc-4.0\n" in (folders / "kept" / "README.md").read_text()
    assert "\nlicense: mit\n" in (folders / "given" / "README.md").read_text()
    (folders / "kept" / "README.md").write_text("---\nlicense: [\n---\nnot YAML")
    assert read_source(folders / "kept").license is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "vit"}, "its config.json is of no known layout: model_type is 'vit'"),
        ({"model_type": "mae"}, "its config is that of the mae_hf layout, its keys are those of the vit_mae layout"),
        ({"num_hidden_layers": 3}, r"missing keys \(16\): vit.encoder.layer.2.layernorm_before.weight"),
        ({"hidden_size": "many"}, "hidden_size must be a positive int, got 'many'"),
        ({"hidden_size": 128, "intermediate_size": 256}, r"contradictory shapes .*: vit.embeddings"),
        (None, "contains a config.json that is not a dictionary"),
    ],
)
def test_config_that_does_not_fit_its_weights_is_refused(folders, change, message):
    path = folders / "vit_mae" / "config.json"
    path.write_text(json.dumps([] if change is None else {**json.loads(path.read_text()), **change}))
    with pytest.raises(CheckpointError, match=message):
        convert(folders / "vit_mae", folders / "out")
    assert not (folders / "out").exists()


@pytest.mark.parametrize("layout", ["mae_hf", "vit_mae"])
def test_more_blocks_than_weights_are_refused_before_they_take_memory(folders, layout):
    path = folders / layout / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_hidden_layers": 10**9}))
    for command in (inspect, lambda source: convert(source, folders / "out")):
        with pytest.raises(CheckpointError, match=r"num_hidden_layers is 1000000000, but there are only \d+ weights"):
            command(folders / layout)


def test_keys_of_a_layout_that_needs_its_config_are_refused_alone(folders):
    alone = shutil.copy(folders / "vit_mae" / "model.safetensors", folders / "alone.safetensors")
    with pytest.raises(CheckpointError, match="its keys are those of the vit_mae layout: pass the folder"):
        read_source(alone)
    (folders / "vit_mae" / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"contains no readable config.json"):
        read_source(folders / "vit_mae")


def test_weights_doubled_under_another_layout_are_refused(reference, tiny_weights, tmp_path):
    tiny_weights["mae.cls_token"] = tiny_weights["cls_token"]
    torch.save({"model": tiny_weights}, tmp_path / "doubled.pth")
    with pytest.raises(CheckpointError, match=r"cls_token and another key of the file map to the same weight"):
        convert(tmp_path / "doubled.pth", tmp_path / "out", **HEADS)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere", "nowhere does not exist"),
        ("./some/where", "some/where does not exist"),
        ("some/where.pth", "some/where.pth does not exist$"),
        ("mae_visualize_vit_base.pth", "does not exist; without .pth, mae_visualize_vit_base would be downloaded"),
        ("someone/something", "someone/something is not a local file or folder, nor on the Hub: "),
    ],
)
def test_what_is_nowhere_is_said_in_one_line(name, message):
    with pytest.raises(CheckpointError, match=message) as caught:
        read_source(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_named_and_kept(reference, tiny_weights, tmp_path, value):
    tiny_weights["norm.bias"][3] = value
    torch.save({"model": tiny_weights}, tmp_path / "odd.pth")
    with pytest.warns(UserWarning, match=r"weights are NaN or infinite \(1\): mae.encoder.norm.bias"):
        convert(tmp_path / "odd.pth", tmp_path / "out", **HEADS)
    assert verify(tmp_path / "odd.pth", tmp_path / "out") == []


def test_cast_that_overflows_is_named(tiny_weights, tmp_path):
    tiny_weights["norm.bias"][3] = 1e5
    torch.save({"model": tiny_weights}, tmp_path / "large.pth")
    with pytest.warns(UserWarning, match=r"weights are NaN or infinite \(1\): mae.encoder.norm.bias"):
        convert(tmp_path / "large.pth", tmp_path / "out", **HEADS, dtype=torch.float16)
