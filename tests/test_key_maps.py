import json

import pytest

from mae_hf.key_maps import count_blocks, native_to_official, official_to_native, official_to_native_names


@pytest.mark.parametrize(("preset", "depth"), [("base", 12), ("large", 24), ("huge", 32)])
def test_names_are_those_of_the_official_checkpoints_in_their_order(reference, preset, depth):
    manifest = json.loads((reference / "manifests" / f"{preset}_pretrain_full.json").read_text())
    names = official_to_native_names(depth, 8)
    assert list(names) == [entry["key"] for entry in manifest]
    assert len(set(names.values())) == len(names)


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
