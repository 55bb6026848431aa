"""Masks depend on the sample only; parameter groups are those of the official scripts."""

import json
import random

import pytest
import torch
from transformers import Trainer, TrainingArguments

from mae_hf import MAEConfig, MAEForImageClassification, MAEForPreTraining
from mae_hf.key_maps import native_to_official
from mae_hf.masking import MASKS, draw_masks
from mae_hf.training import MaskingCollator, layer_decay_groups, seeded

NOISE = [0.336071252822876, 0.9613409042358398, 0.07914900779724121]  # of seed 3, epoch 2 and index 7
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
    """The entry in `settings` of each trained parameter, by its official key."""
    named = {name: settings[parameter] for name, parameter in model.named_parameters() if parameter in settings}
    return native_to_official(named)


def manifest(reference, size, kind):
    """Number of dimensions by official key."""
    entries = json.loads((reference / "manifests" / f"{size}_{kind}.json").read_text())
    return {entry["key"]: len(entry["shape"]) for entry in entries}


@pytest.mark.parametrize("mask", ["random", "block"])
def test_masks_depend_on_seed_epoch_and_index_however_the_work_is_shared(tiny_config, mask):
    config = tiny_config(image_size=64)
    collate = MaskingCollator(config, mask)
    whole = collate(samples([5, 0, 7, 2]))
    parts = [collate(samples(indices)) for indices in ([5, 0], [7, 2])]
    (name,) = whole.keys() - {"pixel_values"}
    assert torch.equal(whole[name], torch.cat([part[name] for part in parts]))
    assert torch.equal(whole["pixel_values"][:, 0, 0, 0], torch.tensor([5.0, 0, 7, 2]))
    others = [
        collate(samples([5], epoch=1)),
        collate(samples([6])),
        MaskingCollator(config, mask, seed=1)(samples([5])),
    ]
    assert all(not torch.equal(other[name][0], whole[name][0]) for other in others)
    assert torch.equal(collate(samples([5], epoch=None))[name], collate(samples([5], epoch=None))[name])


def test_noise_of_a_sample_is_the_same_in_every_version(tiny_config):
    """Numbers of the generator seeded with "seed/mask/epoch/index": runs can be repeated."""
    noise = MaskingCollator(tiny_config(), seed=3)(samples([7], epoch=2))["noise"]
    generator = torch.Generator().manual_seed(random.Random("3/mask/2/7").getrandbits(63))
    assert torch.equal(noise[0], torch.rand(16, generator=generator))
    torch.testing.assert_close(noise[0, :3], torch.tensor(NOISE), atol=0, rtol=0)


def test_noise_is_uniform_and_the_batch_is_the_input_of_the_model(fresh):
    batch = MaskingCollator(fresh().config)(samples(range(512)))
    noise = batch["noise"]
    assert noise.min() >= 0 and noise.max() < 1 and abs(noise.mean() - 0.5) < 0.02 and abs(noise.var() - 1 / 12) < 0.01
    assert torch.corrcoef(noise).fill_diagonal_(0).abs().max() < 0.95  # no two images have the same
    assert torch.equal(fresh()(**batch).mask, fresh()(batch["pixel_values"], noise=noise).mask)


@pytest.mark.parametrize("mask", MASKS)
def test_a_model_trains_with_masks_of_every_strategy(fresh, mask):
    """The masks are those of the strategy, in grids that are not square too."""
    model = fresh(image_size=(32, 64)).train()
    collate = MaskingCollator(model.config, mask)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    images = [{**sample, "pixel_values": torch.randn(3, 32, 64)} for sample in samples(range(4))]
    losses = []
    for _ in range(5):
        out = model(**collate(images))
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        losses.append(out.loss.item())
    assert losses[-1] < losses[0]
    assert out.mask.sum(dim=1).tolist() == [24] * 4
    if mask == "grid":
        assert torch.equal(out.mask.bool(), draw_masks("grid", 4, (4, 8), 0.75)["bool_masked_pos"])


@pytest.mark.heavy  # Trainer needs accelerate
@pytest.mark.parametrize("mask", MASKS)
def test_the_trainer_pretrains_with_masks_of_every_strategy(fresh, tmp_path, mask):
    model = fresh()
    arguments = TrainingArguments(
        str(tmp_path),
        max_steps=3,
        per_device_train_batch_size=2,
        remove_unused_columns=False,
        report_to=[],
        use_cpu=True,
    )
    data = samples(range(4))
    trainer = Trainer(model, arguments, data_collator=MaskingCollator(model.config, mask), train_dataset=data)
    assert trainer.train().training_loss > 0


def test_collator_rejects_what_no_batch_could_have(tiny_config):
    with pytest.raises(ValueError, match="unknown masking strategy 'blocks'; known: random, block, grid"):
        MaskingCollator(tiny_config(), "blocks")
    with pytest.raises(
        ValueError, match="0.5 is not possible with grid masking on a 4x4 grid: the nearest are 0 and 0.75"
    ):
        MaskingCollator(tiny_config(mask_ratio=0.5), "grid")


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


def test_a_rate_of_one_is_no_layer_decay_and_invalid_rates_are_refused(tiny_config):
    model = MAEForImageClassification(tiny_config(num_labels=3))
    assert {group["lr"] for group in layer_decay_groups(model, 0.1, layer_decay=1)} == {0.1}
    for rate in (0.0, 1.5):
        with pytest.raises(ValueError, match=rf"layer_decay must be in \(0, 1\], got {rate}"):
            layer_decay_groups(model, 0.1, layer_decay=rate)
