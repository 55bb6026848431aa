"""The tiny model against golden values of the official implementation; tolerances as measured for float32 on a CPU."""

import argparse
import json

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from mae_hf import MAEForImageClassification
from mae_hf.key_maps import native_to_official, official_to_native

BOTH = pytest.mark.parametrize("attention", ["sdpa", "eager"])
LATENT, PRED, LOSS = 2e-5, 1e-5, 5e-6


def without_key_bias(key, tensor):
    """Leave out the middle third of a qkv bias: its gradient is exactly zero, so the stored one is noise."""
    if not key.endswith("qkv.bias"):
        return tensor
    query, _, value = tensor.chunk(3)
    return torch.cat([query, value])


@BOTH
@pytest.mark.parametrize("ratio", [0.75, 0.5, 0.0])
@pytest.mark.parametrize("norm_pix_loss", [False, True])
def test_outputs(tiny_model, golden, attention, ratio, norm_pix_loss):
    model = tiny_model(norm_pix_loss=norm_pix_loss, attn_implementation=attention)
    with torch.no_grad():
        out = model(golden["pixel_values"], noise=golden["noise"], mask_ratio=ratio)
        latent = model.mae(golden["pixel_values"], noise=golden["noise"], mask_ratio=ratio).last_hidden_state
    expected = {name: golden.get(f"mask_{ratio}.{name}") for name in ("mask", "ids_restore", "pred", "latent")}
    assert torch.equal(out.mask, expected["mask"]) and torch.equal(out.ids_restore, expected["ids_restore"])
    assert_close(latent, expected["latent"], atol=LATENT, rtol=0)
    assert_close(out.logits, expected["pred"], atol=PRED, rtol=0)
    if ratio == 0.0:
        assert out.loss is None
    else:
        loss = golden[f"mask_{ratio}.loss_norm_pix" if norm_pix_loss else f"mask_{ratio}.loss"]
        assert_close(out.loss, loss, atol=LOSS, rtol=0)


@BOTH
def test_gradients(tiny_model, golden, attention):
    model = tiny_model(norm_pix_loss=True, attn_implementation=attention)
    model(golden["pixel_values"], noise=golden["noise"], mask_ratio=0.75).loss.backward()
    gradients = native_to_official({key: value.grad for key, value in model.named_parameters()})
    stored = {key.removeprefix("grad."): value for key, value in golden.items() if key.startswith("grad.")}
    assert {key for key, value in gradients.items() if value is not None} == set(stored)
    for key, expected in stored.items():
        found, expected = without_key_bias(key, gradients[key]), without_key_bias(key, expected)
        assert_close(found, expected, atol=1e-5 * expected.abs().max().item(), rtol=0, msg=lambda m, k=key: f"{k}: {m}")
        if key.endswith("qkv.bias"):
            assert gradients[key].chunk(3)[1].abs().max() < 1e-8


@BOTH
def test_twenty_training_steps(tiny_model, reference, attention):
    stored = load_file(reference / "tiny" / "trajectory.safetensors")
    model = tiny_model(norm_pix_loss=True, attn_implementation=attention).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.05)
    for images, noise, expected in zip(stored["batches"], stored["noises"], stored["losses"], strict=True):
        loss = model(images, noise=noise, mask_ratio=0.75).loss
        assert_close(loss, expected, atol=LOSS, rtol=0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for key, value in native_to_official(model.state_dict()).items():
        expected = without_key_bias(key, stored[f"final.{key}"])
        assert_close(without_key_bias(key, value), expected, atol=1e-4, rtol=0, msg=lambda m, k=key: f"{k}: {m}")


@BOTH
def test_one_step_gives_the_official_training_checkpoint(tiny_model, golden, reference, attention):
    model = tiny_model(norm_pix_loss=True, attn_implementation=attention).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": 0.05},
    ]
    facts = json.loads((reference / "tiny" / "golden.json").read_text())["training_checkpoint"]
    optimizer = torch.optim.AdamW(groups, lr=facts["lr_used"], betas=tuple(facts["betas"]))
    loss = model(golden["train_step.pixel_values"], noise=golden["train_step.noise"], mask_ratio=0.75).loss
    assert_close(loss, golden["train_step.loss"], atol=LOSS, rtol=0)
    loss.backward()
    optimizer.step()
    path = reference / "tiny" / "training_checkpoint.pth"
    with torch.serialization.safe_globals([argparse.Namespace]):
        stored = torch.load(path, weights_only=True)["model"]
    for key, value in native_to_official(model.state_dict()).items():
        assert_close(without_key_bias(key, value), without_key_bias(key, stored[key]), atol=5e-5, rtol=0)


@BOTH
def test_flat_patches(tiny_model, golden, attention):
    """The epsilon of the normalised target is inside the root: outside, their loss would differ by 0.35."""
    for norm_pix_loss, key in ((False, "loss"), (True, "loss_norm_pix")):
        model = tiny_model(norm_pix_loss=norm_pix_loss, attn_implementation=attention)
        with torch.no_grad():
            out = model(golden["flat.pixel_values"], noise=golden["noise"], mask_ratio=0.75)
        assert_close(out.logits, golden["flat.mask_0.75.pred"], atol=PRED, rtol=0)
        assert_close(out.loss, golden[f"flat.mask_0.75.{key}"], atol=LOSS, rtol=0)


CLASSIFIERS = {
    "finetuned": {"pooling": "mean"},
    "finetuned_cls": {"pooling": "cls"},
    "linprobe": {"pooling": "cls", "linear_probe": True},
}


@BOTH
@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_classifiers(tiny_config, golden, reference, attention, kind):
    config = tiny_config(num_labels=10, attn_implementation=attention, **CLASSIFIERS[kind])
    model = MAEForImageClassification(config).eval()
    weights = torch.load(reference / "tiny" / f"{kind}.pth", weights_only=True)["model"]
    model.load_state_dict(official_to_native(weights))
    assert list(native_to_official(model.state_dict())) == list(weights)
    inputs = {}
    for name, module in model.named_modules():
        if name in ("head", "head.1"):
            module.register_forward_hook(lambda module, args, out, name=name: inputs.update({name: args[0]}))
    with torch.no_grad():
        logits = model(golden["pixel_values"]).logits
    assert_close(logits, golden[f"{kind}.logits"], atol=PRED, rtol=0)
    assert_close(inputs["head"], golden[f"{kind}.features"], atol=PRED, rtol=0)
    if kind == "linprobe":
        assert_close(inputs["head.1"], golden["linprobe.bn_features"], atol=PRED, rtol=0)
