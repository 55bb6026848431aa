"""Masking noise belongs to the sample; parameter groups are those of the official scripts."""

import json

import pytest
import torch
from transformers import Trainer

from mae_hf import MAEConfig, MAEForImageClassification, MAEForPreTraining
from mae_hf.key_maps import native_to_official
from mae_hf.training import MaskingCollator, layer_decay_groups, seeded

CLASSIFIERS = {
    "finetuned": {},
    "finetuned_cls": {"pooling": "cls"},
    "linprobe": {"pooling": "cls", "linear_probe": True},
}


def samples(indices, epoch=0):
    return [{"pixel_values": torch.full((3, 32, 32), i), "epoch": epoch, "index": i} for i in indices]


def on_meta(model_class, size, **fields):
    with torch.device("meta"):
        return model_class(MAEConfig.from_preset(size, **fields))


def by_official_key(model, settings):
    """What `settings` says of each trained parameter, by its official key."""
    named = {name: settings[parameter] for name, parameter in model.named_parameters() if parameter in settings}
    return native_to_official(named)


def manifest(reference, size, kind):
    """Number of dimensions by official key."""
    entries = json.loads((reference / "manifests" / f"{size}_{kind}.json").read_text())
    return {entry["key"]: len(entry["shape"]) for entry in entries}


def test_noise_belongs_to_seed_epoch_and_index_however_the_work_is_shared():
    collate = MaskingCollator(num_patches=16)
    whole = collate(samples([5, 0, 7, 2]))
    parts = [collate(samples(share)) for share in ([5, 0], [7, 2])]
    assert torch.equal(whole["noise"], torch.cat([part["noise"] for part in parts]))
    assert torch.equal(whole["pixel_values"][:, 0, 0, 0], torch.tensor([5.0, 0, 7, 2]))
    others = [collate(samples([5], epoch=1)), collate(samples([6])), MaskingCollator(16, seed=1)(samples([5]))]
    assert all(not torch.equal(other["noise"][0], whole["noise"][0]) for other in others)
    assert torch.equal(collate(samples([5], epoch=None))["noise"], collate(samples([5], epoch=None))["noise"])


def test_noise_is_uniform_and_the_model_takes_the_batch_as_it_is(fresh):
    batch = MaskingCollator(num_patches=16)(samples(range(512)))
    noise = batch["noise"]
    assert noise.min() >= 0 and noise.max() < 1 and abs(noise.mean() - 0.5) < 0.02 and abs(noise.var() - 1 / 12) < 0.01
    assert torch.corrcoef(noise).fill_diagonal_(0).abs().max() < 0.95  # no two images have the same
    assert torch.equal(fresh()(**batch).mask, fresh()(batch["pixel_values"], noise=noise).mask)


def test_seeds_of_different_parts_differ():
    parts = [(0, "mask", 1, 2), (0, "mask", 12), (0, "mask", 2, 1), (1, "mask", 1, 2), (0, "order", 1, 2)]
    assert len({seeded(*part).random() for part in parts}) == len(parts)
    assert seeded(0, "mask", 1).random() == seeded(0, "mask", 1).random()


@pytest.mark.parametrize("kind", CLASSIFIERS)
@pytest.mark.parametrize("size", ["base", "large", "huge"])
def test_layer_decay_is_the_official_rule(reference, size, kind):
    """`param_groups_lrd` in util/lr_decay.py: no decay for vectors, class token and positions; rates by layer."""
    model = on_meta(MAEForImageClassification, size, num_labels=1000, **CLASSIFIERS[kind])
    top = model.config.num_hidden_layers + 1
    expected = {}
    for key, dimensions in manifest(reference, size, kind).items():
        if (kind == "linprobe" and key not in ("head.1.weight", "head.1.bias")) or "running" in key or "num_b" in key:
            continue
        first = key in ("cls_token", "pos_embed") or key.startswith("patch_embed.")
        layer = 0 if first else int(key.split(".")[1]) + 1 if key.startswith("blocks.") else top
        decay = 0.0 if dimensions == 1 or key in ("cls_token", "pos_embed") else 0.05
        expected[key] = (1e-3 * 0.65 ** (top - layer), decay)
    groups = layer_decay_groups(model, 1e-3, 0.05, 0.65)
    found = {parameter: (group["lr"], group["weight_decay"]) for group in groups for parameter in group["params"]}
    assert by_official_key(model, found) == expected
    assert groups[0]["lr"] == 1e-3  # the one that is logged
    assert sum(len(group["params"]) for group in groups) == len(expected)
    assert len({(group["lr"], group["weight_decay"]) for group in groups}) == len(groups)


@pytest.mark.parametrize("size", ["base", "large", "huge"])
def test_trainer_decays_in_pretraining_what_the_official_script_does(reference, size):
    """`add_weight_decay` of timm 0.3.2: vectors and biases are free of decay, tokens are not; positions are frozen."""
    model = on_meta(MAEForPreTraining, size)
    decayed = Trainer.get_decay_parameter_names(None, model)
    found = {p: name in decayed for name, p in model.named_parameters() if p.requires_grad}
    shapes = manifest(reference, size, "pretrain_full")
    expected = {key: dimensions > 1 for key, dimensions in shapes.items() if not key.endswith("pos_embed")}
    assert by_official_key(model, found) == expected


def test_a_rate_of_one_is_no_layer_decay_and_other_rates_are_refused(tiny_config):
    model = MAEForImageClassification(tiny_config(num_labels=3))
    assert {group["lr"] for group in layer_decay_groups(model, 0.1, layer_decay=1)} == {0.1}
    for rate in (0.0, 1.5):
        with pytest.raises(ValueError, match=rf"layer_decay must be in \(0, 1\], got {rate}"):
            layer_decay_groups(model, 0.1, layer_decay=rate)
