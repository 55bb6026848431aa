import argparse
import json
import shutil
from collections import OrderedDict

import pytest
import torch
from torch.testing import assert_close
from transformers import BitImageProcessorPil
from transformers.models.auto.image_processing_auto import AutoImageProcessor  # of itself wants no torchvision

from mae_hf import MAEConfig, MAEForPreTraining, MAEModel
from mae_hf.checkpoint import CheckpointError
from mae_hf.conversion import convert, inspect, verify
from mae_hf.conversion.convert import _own_storage, differences
from mae_hf.conversion.inference import released_preset
from mae_hf.conversion.layouts import Layout
from mae_hf.key_maps import native_to_official
from tests.helpers import HEADS

PRETRAINING = ["full.pth", "training_checkpoint.pth", "full_legacy.pth", "full_fp16.pth"]


@pytest.mark.parametrize("name", [*PRETRAINING, "encoder.pth"])
def test_every_tensor_keeps_its_bits(reference, tmp_path, name):
    source = reference / "tiny" / name
    convert(source, tmp_path / "out", **HEADS)
    assert verify(source, tmp_path / "out") == []
    made = MAEModel if name == "encoder.pth" else MAEForPreTraining
    model, info = made.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.config.architectures == [made.__name__]
    assert {parameter.dtype for parameter in model.parameters()} == {model.config.dtype}


@pytest.mark.parametrize("name", ["full.pth", "full_legacy.pth"])
def test_converted_model_gives_the_golden_values(reference, golden, tmp_path, name):
    convert(reference / "tiny" / name, tmp_path / "out", **HEADS)
    out = MAEForPreTraining.from_pretrained(tmp_path / "out")(golden["pixel_values"], noise=golden["noise"])
    assert_close(out.logits, golden["mask_0.75.pred"], atol=1e-5, rtol=0)
    assert_close(out.loss, golden["mask_0.75.loss"], atol=5e-6, rtol=0)


def test_half_precision_file_gives_the_golden_values_in_float32(reference, golden, tmp_path):
    convert(reference / "tiny" / "full_fp16.pth", tmp_path / "out", **HEADS)
    model = MAEForPreTraining.from_pretrained(tmp_path / "out", dtype=torch.float32)
    with torch.no_grad():
        latent = model.mae(golden["pixel_values"], noise=golden["noise"]).last_hidden_state
        out = model(golden["pixel_values"], noise=golden["noise"])
    assert_close(latent, golden["fp16.mask_0.75.latent"], atol=2e-5, rtol=0)
    assert_close(out.logits, golden["fp16.mask_0.75.pred"], atol=1e-5, rtol=0)
    assert_close(out.loss, golden["fp16.mask_0.75.loss"], atol=5e-6, rtol=0)


def test_encoder_file_gives_golden_features_and_an_encoder_folder(reference, golden, tmp_path):
    convert(reference / "tiny" / "encoder.pth", tmp_path / "out", num_attention_heads=4)
    model = MAEModel.from_pretrained(tmp_path / "out")
    latent = model(golden["pixel_values"], noise=golden["noise"], mask_ratio=0.75).last_hidden_state
    assert_close(latent, golden["mask_0.75.latent"], atol=2e-5, rtol=0)
    with pytest.warns(UserWarning, match="encoder-only weights"):
        MAEForPreTraining.from_pretrained(tmp_path / "out")


def test_destination_is_looked_at_before_the_source_is_read(tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(CheckpointError, match="out is a file, and the result is a folder"):
        convert(tmp_path / "no_such.pth", tmp_path / "out")


def test_what_reads_back_differently_is_not_kept(reference, tmp_path, monkeypatch):
    read_back = Layout.read_back

    def misread(layout, place):
        return {key: value + (key == "mae.cls_token") for key, value in read_back(layout, place).items()}

    monkeypatch.setattr(Layout, "read_back", misread)
    with pytest.raises(CheckpointError, match="reading back what was written failed: mae.cls_token has other values"):
        convert(reference / "tiny" / "full.pth", tmp_path / "out", **HEADS)
    assert list(tmp_path.iterdir()) == []


def test_training_arguments_tell_the_target_and_an_option_may_not_contradict(reference, tmp_path):
    source = reference / "tiny" / "training_checkpoint.pth"
    done = convert(source, tmp_path / "out", **HEADS)
    assert done.config.norm_pix_loss and done.norm_pix_loss_from == "the training arguments in the file"
    with pytest.raises(
        CheckpointError,
        match="True by the training arguments in the file: leave out the contradictory",
    ):
        convert(source, tmp_path / "other", **HEADS, norm_pix_loss=False)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(("option", "expected"), [(None, False), (True, True), (False, False)])
def test_without_training_arguments_the_option_tells_the_target(reference, tmp_path, option, expected):
    done = convert(reference / "tiny" / "full.pth", tmp_path / "out", **HEADS, norm_pix_loss=option)
    assert done.config.norm_pix_loss is expected
    assert done.norm_pix_loss_from == (None if option is None else "the option")


def test_weights_can_be_cast_and_sharded(reference, tiny_weights, tmp_path):
    options = {"dtype": torch.bfloat16, "max_shard_size": "100KB"}
    convert(reference / "tiny" / "full.pth", tmp_path / "out", **HEADS, **options)
    assert len(list((tmp_path / "out").glob("model-*-of-*.safetensors"))) > 1
    model = MAEForPreTraining.from_pretrained(tmp_path / "out")
    assert model.dtype == torch.bfloat16
    assert torch.equal(model.decoder.pred.weight, tiny_weights["decoder_pred.weight"].bfloat16())
    assert "decoder.pred.weight is torch.bfloat16, not torch.float32" in " ".join(
        verify(reference / "tiny" / "full.pth", tmp_path / "out")
    )


def test_folder_holds_config_weights_processor_and_card(reference, tmp_path):
    convert(reference / "tiny" / "full.pth", tmp_path / "out", **HEADS)
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == {"config.json", "model.safetensors", "preprocessor_config.json", "README.md"}
    assert len({path.stat().st_mode for path in (tmp_path / "out").iterdir()}) == 1
    for made in (BitImageProcessorPil, AutoImageProcessor):
        processor = made.from_pretrained(tmp_path / "out")
        assert processor.crop_size["height"] == 32 and processor.size["shortest_edge"] == 36


def test_other_channels_come_without_a_processor_and_other_shapes_with_a_hint(tmp_path):
    sizes = {"image_size": (16, 32), "patch_size": 8, "num_channels": 4, "hidden_size": 16, "depth": 1, "num_heads": 2}
    model = MAEForPreTraining(MAEConfig(**sizes, decoder_num_heads=4))
    torch.save({"model": native_to_official(model.state_dict())}, tmp_path / "own.pth")
    heads = {"num_attention_heads": 2, "decoder_num_attention_heads": 4}
    with pytest.raises(CheckpointError, match="8 patches do not form a square image: .* --image-size HEIGHT WIDTH"):
        convert(tmp_path / "own.pth", tmp_path / "out", **heads)
    with pytest.raises(CheckpointError, match="16x16 does not have the checkpoint's 8 patches"):
        convert(
            tmp_path / "own.pth",
            tmp_path / "out",
            num_attention_heads=2,
            decoder_num_attention_heads=4,
            image_size=(16, 16),
        )
    with pytest.raises(CheckpointError, match=r"positive and divisible by patch size 8, got \(17, 35\)"):
        convert(
            tmp_path / "own.pth",
            tmp_path / "out",
            num_attention_heads=2,
            decoder_num_attention_heads=4,
            image_size=(17, 35),
        )
    done = convert(
        tmp_path / "own.pth",
        tmp_path / "out",
        num_attention_heads=2,
        decoder_num_attention_heads=4,
        image_size=(16, 32),
    )
    assert done.config.image_size == (16, 32) and done.config.num_channels == 4
    assert not (tmp_path / "out" / "preprocessor_config.json").exists()
    assert MAEForPreTraining.from_pretrained(tmp_path / "out").config.grid_size == (2, 4)


def test_weights_that_share_storage_are_all_written(tiny_weights, tmp_path):
    tiny_weights["blocks.1.norm1.weight"] = tiny_weights["blocks.0.norm1.weight"]
    tiny_weights["norm.bias"] = torch.randn(128)[:64]
    torch.save({"model": tiny_weights}, tmp_path / "shared.pth")
    assert convert(tmp_path / "shared.pth", tmp_path / "out", **HEADS).num_tensors == 62
    assert verify(tmp_path / "shared.pth", tmp_path / "out") == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda w: w.pop("decoder_norm.bias"),
            r"changed.pth is not converted: missing keys \(1\): decoder_norm.bias",
        ),
        (lambda w: w.pop("decoder_embed.weight"), "missing key: decoder_embed.weight"),
        (lambda w: w.pop("cls_token"), "weights of another model: no cls_token; the first keys are pos_embed"),
        (
            lambda w: w.update({"blocks.2000000000.norm1.bias": torch.zeros(64)}),
            r"unexpected keys \(1\): blocks.20000",
        ),
        (lambda w: w.update(cls_token=torch.zeros(1, 1, 64).int()), "unsupported dtypes .*: cls_token"),
        (lambda w: w.update({"patch_embed.proj.weight": torch.zeros(64, 3, 0, 0)}), "none of size 0"),
        (lambda w: w.update(extra=torch.zeros(1)), r"unexpected keys \(1\): extra"),
        (lambda w: w.update(cls_token=torch.zeros(1, 1, 60)), r"cls_token \(1, 1, 60\), expected \(1, 1, 64\)"),
        (
            lambda w: w.update(pos_embed=torch.zeros(17, 64)),
            r"pos_embed must have 3 dimensions, .* got the shape \(17, 64\)",
        ),
        (
            lambda w: w.update({"patch_embed.proj.weight": torch.zeros(66, 3, 8, 8)}),
            "hidden_size must be divisible by 4",
        ),
    ],
)
def test_keys_and_shapes_that_do_not_fit_are_named(tiny_weights, tmp_path, change, message):
    weights = OrderedDict(tiny_weights)
    change(weights)
    torch.save({"model": weights}, tmp_path / "changed.pth")
    with pytest.raises(CheckpointError, match=message):
        convert(tmp_path / "changed.pth", tmp_path / "out", **HEADS)
    assert [path.name for path in tmp_path.iterdir()] == ["changed.pth"]


def test_heads_that_nothing_tells_are_asked_for(reference, tmp_path):
    source = reference / "tiny" / "full.pth"
    with pytest.raises(CheckpointError, match="--num-attention-heads N --decoder-num-attention-heads N"):
        convert(source, tmp_path / "out")
    with pytest.raises(CheckpointError, match=r"divisible by num_attention_heads \(5\), got 64"):
        convert(source, tmp_path / "out", num_attention_heads=5, decoder_num_attention_heads=4)


def test_released_name_tells_target_and_licence_only_with_the_right_shapes(reference, tmp_path, monkeypatch):
    source = shutil.copy(reference / "tiny" / "full.pth", tmp_path / "mae_pretrain_vit_base_full.pth")
    done = convert(source, tmp_path / "out", **HEADS)
    assert not done.config.norm_pix_loss
    assert "license: other" in (tmp_path / "out" / "README.md").read_text()
    # now the tiny model has the shapes of base
    monkeypatch.setattr("mae_hf.conversion.source.released_preset", lambda *_: "base")
    done = convert(source, tmp_path / "out", **HEADS, overwrite=True, license="mit")
    assert done.config.norm_pix_loss and done.norm_pix_loss_from == "the catalogue of released files"
    assert "license: cc-by-nc-4.0" in (tmp_path / "out" / "README.md").read_text()
    assert inspect(source)["released file"] == "mae_pretrain_vit_base_full (its name and shapes)"


def test_released_sizes_are_those_of_the_files_in_all_they_have_in_common():
    classifier = {"head.weight": torch.zeros(1000, 1)}
    for fields, weights, preset in (
        ({}, {}, "base"),
        ({}, classifier, "base"),
        ({}, {"head.weight": torch.zeros(10, 1)}, None),
        ({"image_size": 448}, {}, None),
        ({"num_channels": 4}, {}, None),
        ({"decoder_num_hidden_layers": 4}, {}, None),
        ({"num_attention_heads": 6}, {}, None),
    ):
        assert released_preset(MAEConfig(**fields).to_dict(), weights) == preset


def test_inspect_says_what_a_file_is(reference):
    found = inspect(reference / "tiny" / "training_checkpoint.pth")
    assert found["kind"].startswith("pretraining") and found["parameters"] == "148,064"
    assert found["other content"] == "optimizer, epoch, scaler, args"
    assert "norm_pix_loss" in found["training arguments"] and found["checksums"] == "verified"
    assert inspect(reference / "tiny" / "full_legacy.pth")["checksums"] == "none in this format"
    assert inspect(reference / "tiny" / "linprobe.pth")["kind"].startswith("linprobe")
    assert found["width, depth, heads"] == "64, 2, unknown" and found["decoder"] == "32, 2, unknown"
    assert inspect(reference / "tiny" / "full.pth", **HEADS)["decoder"] == "32, 2, 4"


def test_verify_names_what_differs(reference, tiny_weights, tmp_path):
    convert(reference / "tiny" / "full.pth", tmp_path / "out", **HEADS)
    tiny_weights["cls_token"].view(torch.uint8)[0, 0, 0] ^= 1  # one bit
    del tiny_weights["mask_token"]
    tiny_weights["extra"] = torch.zeros(1)
    torch.save({"model": tiny_weights}, tmp_path / "changed.pth")
    assert verify(tmp_path / "changed.pth", tmp_path / "out") == [
        "extra is missing",
        "decoder.mask_token is extra",
        "mae.cls_token has other values",
    ]


def test_mask_ratio_of_the_training_arguments_reaches_the_config(tiny_weights, tmp_path):
    args = argparse.Namespace(mask_ratio=0.6, norm_pix_loss=False)
    torch.save({"model": tiny_weights, "args": args}, tmp_path / "checkpoint-799.pth")
    convert(tmp_path / "checkpoint-799.pth", tmp_path / "out", **HEADS)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["mask_ratio"] == 0.6
    torch.save({"model": tiny_weights, "args": {"norm_pix_loss": 1}}, tmp_path / "dict.pth")
    assert convert(tmp_path / "dict.pth", tmp_path / "other", **HEADS).config.norm_pix_loss is True


def test_difference_is_one_of_bits():
    nan = torch.tensor([float("nan"), 0.0])
    assert differences({"a": nan}, {"a": nan.clone()}) == []
    assert differences({"a": torch.zeros(1)}, {"a": -torch.zeros(1)}) == ["a has other values"]
    assert differences({"a": torch.tensor(1.0)}, {"a": torch.tensor(1.0)}) == []
    assert differences({"a": torch.zeros(1)}, {"a": torch.zeros(2)}) == ["a has the shape (2,), not (1,)"]


def test_tensors_that_share_or_waste_storage_get_their_own():
    flat = torch.arange(6.0)
    given = {"a": flat, "b": flat, "c": flat[:2], "d": flat.reshape(2, 3).T, "e": torch.zeros(1).expand(4)}
    owned = _own_storage(given, None)
    assert all(torch.equal(owned[key], value) for key, value in given.items())
    assert owned["a"] is flat and len({value.data_ptr() for value in owned.values()}) == 5
    assert all(value.is_contiguous() and value.untyped_storage().nbytes() == value.nbytes for value in owned.values())


def test_cast_leaves_integers_alone():
    given = {"a": torch.zeros(2), "n": torch.tensor(3)}
    assert _own_storage(given, None) == given
    dtypes = {key: value.dtype for key, value in _own_storage(given, torch.float16).items()}
    assert dtypes == {"a": torch.float16, "n": torch.int64}


def test_config_has_the_dtype_that_holds_all_floating_point_tensors(tiny_weights, tmp_path):
    half, brain = torch.float16, torch.bfloat16
    for dtypes, expected in (((half, half), half), ((brain, brain), brain), ((half, brain), torch.float32)):
        weights = {key: value.to(dtypes["norm" in key]) for key, value in tiny_weights.items()}
        torch.save({"model": weights}, tmp_path / "mixed.pth")
        assert convert(tmp_path / "mixed.pth", tmp_path / "out", overwrite=True, **HEADS).config.dtype == expected


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"dtype": "float"}, "dtype must be one of float16, bfloat16, float32, float64, got float"),
        ({"dtype": torch.int8}, "dtype must be one of .*, got torch.int8"),
        ({"norm_pix_loss": "no"}, "norm_pix_loss must be True, False or None, got 'no'"),
        ({"norm_pix_loss": 1}, "norm_pix_loss must be True, False or None, got 1"),
        ({"image_size": "32"}, "a size must be an int or a pair"),
        ({"to": "vitmae"}, "unknown layout 'vitmae'"),
    ],
)
def test_arguments_that_make_no_sense_are_refused_before_anything_is_written(reference, tmp_path, argument, message):
    with pytest.raises(ValueError, match=message):
        convert(reference / "tiny" / "full.pth", tmp_path / "out", **HEADS, **argument)
    assert list(tmp_path.iterdir()) == []


def test_report_of_a_conversion_holds_no_weights(reference, tmp_path):
    done = convert(reference / "tiny" / "full.pth", tmp_path / "out", image_size=32, **HEADS)
    assert done.source.state_dict == {} and len(repr(done)) < 10_000
