"""Base, large and huge against golden values of the official implementation, through `.pth` and command line."""

import json

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from benchmarks.golden_weights import golden_input, golden_tensor
from benchmarks.parity import converted, measure_differences
from mae_hf import MAEConfig, MAEForImageClassification, MAEForPreTraining, MAEModel

TOLERANCES = {"latent": 2e-5, "encoder": 2e-5, "pred": 1e-5, "loss": 5e-6, "loss_norm_pix": 5e-6}
CLASSIFIERS = {
    "finetuned": {"pooling": "mean"},
    "finetuned_cls": {"pooling": "cls"},
    "linprobe": {"pooling": "cls", "linear_probe": True},
}
HEAVY = [pytest.param("large", marks=pytest.mark.heavy), pytest.param("huge", marks=pytest.mark.heavy)]


@pytest.mark.parametrize("preset", ["base", "large", "huge"])
def test_parameter_counts(reference, preset):
    counts = json.loads((reference / "manifests" / "parameter_counts.json").read_text())[preset]
    with torch.device("meta"):
        config = MAEConfig.from_preset(preset)
        models = {"pretrain_full": MAEForPreTraining(config), "pretrain": MAEModel(config)}
        for kind, fields in CLASSIFIERS.items():
            models[kind] = MAEForImageClassification(MAEConfig.from_preset(preset, num_labels=1000, **fields))
    for kind, model in models.items():
        assert model.num_parameters() == counts[kind]["parameters"]
        assert model.num_parameters(only_trainable=True) == counts[kind]["trainable"]
        assert len(model.state_dict()) == counts[kind]["state_dict_tensors"]


@pytest.mark.parametrize("preset", ["base", "large", "huge"])
def test_recipe_was_followed(reference, preset):
    checks = json.loads((reference / "full" / "full.json").read_text())["variants"][preset]["weight_checks"]
    manifest = json.loads((reference / "manifests" / f"{preset}_pretrain_full.json").read_text())
    shapes = {entry["key"]: entry["shape"] for entry in manifest}
    for key in ("cls_token", "decoder_pos_embed", "blocks.0.norm1.weight"):
        assert golden_tensor(key, shapes[key]).flatten()[:3].tolist() == checks[key]["first"]


@pytest.mark.parametrize("preset", ["base", *HEAVY])
def test_outputs(tmp_path, preset):
    folder = converted(preset, tmp_path)
    for attention in ("sdpa", "eager"):
        model, info = MAEForPreTraining.from_pretrained(folder, attn_implementation=attention, output_loading_info=True)
        assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        for name, difference in measure_differences(model, preset).items():
            assert difference <= TOLERANCES[name], f"{name} differs by {difference} with {attention}"
        del model


@pytest.mark.parametrize("preset", ["base", *HEAVY])
def test_fine_tuned_classifiers(reference, tmp_path, preset):
    golden = load_file(reference / "full" / f"{preset}.safetensors")
    pixel_values, _ = golden_input(golden["noise"].shape[1])
    folder = converted(preset, tmp_path, "finetuned")
    for attention in ("sdpa", "eager"):
        model = MAEForImageClassification.from_pretrained(folder, attn_implementation=attention)
        features = []
        model.fc_norm.register_forward_hook(lambda module, args, out, features=features: features.append(out))
        with torch.no_grad():
            logits = model(pixel_values).logits
        assert_close(features[0], golden["finetuned.features"], atol=1e-5, rtol=0)
        assert_close(logits, golden["finetuned.logits"], atol=1e-5, rtol=0)
        assert model.config.id2label[281] == "tabby, tabby cat"
        del model
