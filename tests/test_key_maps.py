"""Names of weights: the maps between layouts are one-to-one and change no value."""

import json

import pytest
import torch

from mae_hf.key_maps import (
    as_on_the_hub,
    count_blocks,
    native_to_official,
    native_to_vit_mae,
    native_to_vit_mae_names,
    official_to_native,
    official_to_native_names,
    vit_mae_to_native,
)

DEPTHS = {"base": 12, "large": 24, "huge": 32}


@pytest.mark.parametrize("kind", ["pretrain", "pretrain_full", "finetuned", "finetuned_cls", "linprobe", "timm"])
@pytest.mark.parametrize("preset", DEPTHS)
def test_names_are_those_of_the_official_checkpoints_in_their_order(reference, preset, kind):
    manifest = json.loads((reference / "manifests" / f"{preset}_{kind}.json").read_text())
    keys = [entry["key"] for entry in manifest]
    names = official_to_native_names(DEPTHS[preset], 8)
    assert [name for name in names if name in keys] == keys
    assert len(set(names.values())) == len(names)


def test_every_native_name_of_a_pretraining_model_has_names_of_its_own_in_vit_mae(tiny_weights):
    names = native_to_vit_mae_names(2, 2)
    assert set(names) == set(official_to_native(tiny_weights))
    theirs = [name for parts in names.values() for name in parts]
    assert len(set(theirs)) == len(theirs) == 78


def test_splitting_and_fusing_query_key_and_value_changes_no_bit(tiny_weights):
    native = official_to_native(tiny_weights)
    theirs = native_to_vit_mae(native)
    query, key, value = (
        theirs[f"vit.encoder.layer.1.attention.attention.{p}.weight"] for p in ("query", "key", "value")
    )
    assert torch.equal(torch.cat([query, key, value]), tiny_weights["blocks.1.attn.qkv.weight"])
    back = vit_mae_to_native(dict(reversed(theirs.items())))
    assert list(back) == list(native_to_vit_mae_names(2, 2))
    assert all(torch.equal(back[key], value) for key, value in native.items())


def test_names_of_other_writers_become_those_of_the_hub(tiny_weights):
    theirs = native_to_vit_mae(official_to_native(tiny_weights))
    saved = {key.replace("decoder.decoder_layers.", "decoder.decoder_encoder.layer."): v for key, v in theirs.items()}
    assert as_on_the_hub(saved).keys() == theirs.keys() == as_on_the_hub(theirs).keys()
    lone = {key.removeprefix("vit."): value for key, value in theirs.items() if key.startswith("vit.")}
    assert as_on_the_hub(lone).keys() == {key for key in theirs if key.startswith("vit.")}


def test_query_without_key_stays_as_it_is():
    weights = {"vit.encoder.layer.0.attention.attention.query.bias": torch.zeros(4), "odd": torch.zeros(1)}
    assert vit_mae_to_native(weights) == weights


def test_renaming_there_and_back_keeps_keys_order_and_values(tiny_weights):
    native = official_to_native(tiny_weights)
    assert all(key.startswith(("mae.", "decoder.")) for key in native)
    back = native_to_official(dict(reversed(native.items())))
    assert list(back) == list(tiny_weights) and all(back[key] is tiny_weights[key] for key in back)


def test_native_names_are_those_of_the_model(tiny_weights, fresh):
    assert set(official_to_native(tiny_weights)) == set(fresh().state_dict())


def test_keys_that_are_not_official_stay_as_they_are():
    assert official_to_native({"blocks.0.attn.qkv.weight": 1, "blocks.0.gamma": 2, "head.weight": 3}) == {
        "mae.encoder.blocks.0.attn.qkv.weight": 1,
        "blocks.0.gamma": 2,
        "head.weight": 3,
    }
    assert list(native_to_official({"head.weight": 1, "mae.cls_token": 2})) == ["cls_token", "head.weight"]


def test_blocks_are_counted():
    keys = ["blocks.0.a", "blocks.0.b", "blocks.1.a", "blocks.1000000000.a", "decoder_blocks.99.a", "blocks.x.c"]
    assert count_blocks(keys, "blocks.") == 3
    assert count_blocks(["cls_token"], "blocks.") == 0
