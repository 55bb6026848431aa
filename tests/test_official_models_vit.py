import json
from functools import partial

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from mae_hf.official import models_vit
from mae_hf.official.models_vit import VisionTransformer, vit_base_patch16
from tests.helpers.official import TINY_VIT

TINY = {**TINY_VIT, "num_classes": 10}
SIZES = {"vit_base_patch16": "base", "vit_large_patch16": "large", "vit_huge_patch14": "huge"}


def weights_of(reference, kind):
    return torch.load(reference / "tiny" / f"{kind}.pth", weights_only=True)["model"]


@pytest.mark.parametrize(("kind", "global_pool"), [("finetuned", True), ("finetuned_cls", False)])
def test_official_checkpoint_gives_the_golden_values(reference, golden, kind, global_pool):
    model = VisionTransformer(global_pool=global_pool, **TINY).eval()
    weights = weights_of(reference, kind)
    assert list(model.state_dict()) == list(weights)
    model.load_state_dict(weights)
    with torch.no_grad():
        assert_close(model.forward_features(golden["pixel_values"]), golden[f"{kind}.features"], atol=1e-5, rtol=0)
        assert_close(model(golden["pixel_values"]), golden[f"{kind}.logits"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("global_pool", [True, False])
def test_official_fine_tuning_script_finds_what_it_expects(reference, global_pool):
    """main_finetune.py: a pretrained encoder lacks exactly the head, and `fc_norm` with mean pooling."""
    model = VisionTransformer(global_pool=global_pool, drop_path_rate=0.1, **TINY)
    message = model.load_state_dict(weights_of(reference, "encoder"), strict=False)
    norm = {"fc_norm.weight", "fc_norm.bias"} if global_pool else set()
    assert set(message.missing_keys) == {"head.weight", "head.bias"} | norm
    assert set(message.unexpected_keys) == ({"norm.weight", "norm.bias"} if global_pool else set())
    assert model.no_weight_decay() <= {name for name, _ in model.named_parameters()}
    assert all(parameter.requires_grad for parameter in model.parameters())
    model.train()(torch.randn(2, 3, 32, 32)).sum().backward()


def test_official_linear_probe_replaces_the_head(reference, golden):
    """main_linprobe.py puts a batch norm before it, and a checkpoint of such a run then fits."""
    model = VisionTransformer(**TINY)
    model.head = nn.Sequential(nn.BatchNorm1d(model.head.in_features, affine=False, eps=1e-6), model.head)
    model.load_state_dict(weights_of(reference, "linprobe"))
    with torch.no_grad():
        assert_close(model.eval()(golden["pixel_values"]), golden["linprobe.logits"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", SIZES)
def test_factories_make_the_three_sizes_of_the_paper(reference, name):
    counts = json.loads((reference / "manifests" / "parameter_counts.json").read_text())[SIZES[name]]
    with torch.device("meta"):
        for kind, global_pool in (("finetuned", True), ("finetuned_cls", False)):
            model = models_vit.__dict__[name](num_classes=1000, drop_path_rate=0.1, global_pool=global_pool)
            assert sum(parameter.numel() for parameter in model.parameters()) == counts[kind]["parameters"]
            manifest = json.loads((reference / "manifests" / f"{SIZES[name]}_{kind}.json").read_text())
            assert list(model.state_dict()) == [entry["key"] for entry in manifest]
    assert model.blocks[-1].drop_path.rate == 0.1


def test_wrong_arguments_are_refused_by_name():
    with pytest.raises(TypeError, match="unexpected keyword argument 'pool'"):
        vit_base_patch16(pool=True)
    with pytest.raises(ValueError, match=r"drop_path_rate must be a number in \[0, 1\), got 1"):
        VisionTransformer(drop_path_rate=1, **TINY)
    with pytest.raises(ValueError, match=r"images have \(48, 32\) pixels, .* img_size=\(32, 32\)"):
        VisionTransformer(**TINY)(torch.zeros(1, 3, 48, 32))
    with pytest.raises(ValueError, match="norm_layer must make a plain nn.LayerNorm"):
        VisionTransformer(norm_layer=nn.BatchNorm1d, **TINY)


def test_epsilon_comes_from_norm_layer():
    model = VisionTransformer(global_pool=True, norm_layer=partial(nn.LayerNorm, eps=1e-3), **TINY)
    assert model.fc_norm.eps == model.blocks[0].norm1.eps == 1e-3


def test_dropout_acts_on_the_tokens_in_training():
    model, tokens = VisionTransformer(drop_rate=0.5, **TINY), []
    model.blocks[0].register_forward_pre_hook(lambda module, args: tokens.append(args[0]))
    model.train()(torch.randn(2, 3, 32, 32))
    assert 0.4 < (tokens[0] == 0).float().mean() < 0.6


def test_number_of_classes_zero_gives_features():
    model = VisionTransformer(**{**TINY, "num_classes": 0})
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 64)
    assert model.get_classifier() is model.head and isinstance(model.head, nn.Identity)


def test_attributes_have_the_names_of_timm():
    model = VisionTransformer(**TINY)
    assert (model.num_classes, model.num_features, model.embed_dim) == (10, 64, 64)
    assert model.get_classifier() is model.head


@pytest.mark.parametrize("global_pool", [True, False])
def test_reset_classifier_makes_an_official_head_under_the_official_keys(global_pool):
    model = VisionTransformer(global_pool=global_pool, **TINY).double()
    expected = list(VisionTransformer(global_pool=global_pool, **{**TINY, "num_classes": 1000}).state_dict())
    model.reset_classifier(1000)
    assert list(model.state_dict()) == expected
    assert model.num_classes == model.config.num_labels == model.head.out_features == 1000
    assert model.head.weight.dtype == torch.float64 and not model.head.bias.any()
    assert 1.9e-5 < model.head.weight.std() < 2.1e-5
    model.reset_classifier(0)
    assert isinstance(model.head, nn.Identity) and model.num_classes == model.config.num_labels == 0


@pytest.mark.parametrize(("before", "global_pool", "after"), [(False, "avg", True), (True, False, False)])
def test_reset_classifier_changes_the_pooling(before, global_pool, after):
    model = VisionTransformer(global_pool=before, **TINY).eval()
    other = VisionTransformer(global_pool=after, **TINY).eval()
    model.reset_classifier(10, global_pool)
    assert list(model.state_dict()) == list(other.state_dict())
    assert model.global_pool is after and model.config.pooling == other.config.pooling
    other.load_state_dict(model.state_dict())
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(model(images), other(images))
    assert model.norm.eps == 1e-6 if not after else model.fc_norm.eps == 1e-6


def test_reset_classifier_refuses_wrong_values_and_changes_nothing():
    model = VisionTransformer(**TINY)
    head = model.head
    with pytest.raises(ValueError, match="num_classes must be a non-negative int, got -1"):
        model.reset_classifier(-1)
    with pytest.raises(ValueError, match="global_pool must be True, False, .avg. or .token., got 'map'"):
        model.reset_classifier(5, "map")
    assert model.head is head and model.num_classes == model.config.num_labels == 10


def test_pooling_has_the_names_of_timm_in_the_constructor_too():
    for name, mean in (("avg", True), ("token", False), (True, True), (False, False)):
        model = VisionTransformer(**TINY_VIT, global_pool=name)
        assert model.global_pool is mean and model.config.pooling == ("mean" if mean else "cls")
        norm = model.fc_norm
        model.reset_classifier(5, global_pool=name)
        assert model.fc_norm is norm  # the trained one is kept
    with pytest.raises(ValueError, match='global_pool must be True, False, "avg" or "token", got .map.'):
        VisionTransformer(**TINY_VIT, global_pool="map")
    with pytest.raises(ValueError, match="num_classes must be a non-negative int, got -1"):
        VisionTransformer(**{**TINY_VIT, "num_classes": -1})
