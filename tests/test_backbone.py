"""MAEBackbone, and heads of transformers that run and train on it."""

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoBackbone, DetrConfig, DetrForObjectDetection, UperNetConfig, UperNetForSemanticSegmentation

from mae_hf import (
    MAEBackbone,
    MAEConfig,
    MAEForImageClassification,
    MAEForPreTraining,
    MAEModel,
    UntrainedWeightsWarning,
)
from mae_hf.cli import main


@pytest.fixture
def folder(tiny_model, tmp_path):
    tiny_model().save_pretrained(tmp_path / "full")
    return tmp_path / "full"


def test_feature_maps_are_the_patches_of_the_chosen_blocks(folder):
    """In image order, normalised: the last one equals the output of `MAEModel`."""
    backbone = MAEBackbone.from_pretrained(folder, out_indices=[0, 1, 2])
    images = torch.randn(2, 3, 32, 32)
    encoded = MAEModel.from_pretrained(folder)(images, output_hidden_states=True)
    maps = backbone(images).feature_maps
    assert [tuple(feature_map.shape) for feature_map in maps] == [(2, 64, 4, 4)] * 3
    for feature_map, tokens in zip(maps, encoded.hidden_states, strict=True):
        normalised = backbone.mae.encoder.norm(tokens)
        assert_close(feature_map[:, :, 2, 3], normalised[:, 1 + 2 * 4 + 3], atol=0, rtol=0)
    assert_close(maps[-1].flatten(2).transpose(1, 2), encoded.last_hidden_state[:, 1:], atol=0, rtol=0)


def test_images_of_any_size_that_the_patch_divides(folder):
    """Heads pass only images, so the position embeddings are interpolated by default."""
    backbone = MAEBackbone.from_pretrained(folder)
    images = torch.randn(1, 3, 48, 24)
    (feature_map,) = backbone(images).feature_maps
    assert feature_map.shape == (1, 64, 6, 3)
    expected = MAEModel.from_pretrained(folder)(images, interpolate_pos_encoding=True).last_hidden_state[:, 1:]
    assert_close(feature_map.flatten(2).transpose(1, 2), expected, atol=0, rtol=0)
    with pytest.raises(ValueError, match="not divisible by the patch size 8"):
        backbone(torch.randn(1, 3, 50, 24))


def test_feature_maps_are_chosen_by_name_or_index(tiny_config):
    assert tiny_config().out_features == ["stage2"]
    assert tiny_config(out_features=["stem", "stage1"]).out_indices == [0, 1]
    config = tiny_config(out_indices=[1, -1])
    assert config.out_features == ["stage1", "stage2"]
    assert MAEBackbone(config).channels == [64, 64]
    assert len(MAEBackbone(config)(torch.randn(1, 3, 32, 32)).feature_maps) == 2
    assert tiny_config(out_features=("stem", "stage1")).out_features == ["stem", "stage1"]
    assert MAEConfig.from_preset("base", out_indices=[3]).out_features == ["stage3"]
    with pytest.raises(ValueError, match=r"out_indices must be a list of int, got \[True\]"):
        tiny_config(out_indices=[True])
    with pytest.raises(ValueError, match="apply_layernorm must be True or False, got 1"):
        tiny_config(apply_layernorm=1)
    with pytest.raises(ValueError, match=r"out_features must be a list of str, got \[3\]"):
        tiny_config(out_features=[3])
    with pytest.raises(ValueError, match="out_indices must be a list of int, got 1"):
        tiny_config(out_indices=1)
    with pytest.raises(ValueError, match=r"out_indices must be valid indices for stage_names \['stem', 'stage1'"):
        tiny_config(out_indices=[3])


def test_choice_is_saved_and_can_be_changed_on_loading(tiny_config, tmp_path):
    tiny_config(out_indices=[0, 1]).save_pretrained(tmp_path)
    assert MAEConfig.from_pretrained(tmp_path).out_features == ["stem", "stage1"]
    assert MAEConfig.from_pretrained(tmp_path, out_features=["stage2"]).out_indices == [2]
    with pytest.raises(ValueError, match="out_indices must be a list of int, got 1"):
        MAEConfig.from_pretrained(tmp_path, out_indices=1)


def test_default_choice_is_not_saved_and_follows_the_depth(tiny_config, tmp_path):
    tiny_config().save_pretrained(tmp_path)
    assert '"out_' not in (tmp_path / "config.json").read_text()
    assert MAEConfig.from_pretrained(tmp_path, num_hidden_layers=1).out_features == ["stage1"]


@pytest.mark.parametrize(("before", "after"), [(4, 2), (2, 4)])
def test_default_choice_follows_a_depth_that_is_changed_later(tiny_config, tmp_path, before, after):
    config = tiny_config(num_hidden_layers=before)
    config.num_hidden_layers = after
    backbone = MAEBackbone(config)
    assert backbone.out_features == [f"stage{after}"]
    backbone.save_pretrained(tmp_path)
    assert MAEBackbone.from_pretrained(tmp_path).out_features == [f"stage{after}"]
    config = tiny_config(num_hidden_layers=before, out_indices=[before])  # a choice stays one
    config.num_hidden_layers = 3
    config.save_pretrained(tmp_path)
    assert f'"stage{before}"' in (tmp_path / "config.json").read_text()


def test_hidden_states_and_attentions_are_returned_if_requested(folder):
    backbone = MAEBackbone.from_pretrained(folder, attn_implementation="eager")
    images = torch.randn(1, 3, 32, 32)
    assert backbone(images).keys() == {"feature_maps"}
    out = backbone(images, output_hidden_states=True, output_attentions=True)
    assert len(out.hidden_states) == 3 and [tuple(weights.shape) for weights in out.attentions] == [(1, 4, 17, 17)] * 2
    assert len(backbone(images, return_dict=False)) == 1
    backbone.config.return_dict = False
    assert len(backbone(images)[0]) == 1 and backbone(images)[0][0].is_contiguous()


def test_feature_maps_without_the_norm(folder):
    """`apply_layernorm=False`: the tokens as they leave the blocks; the weights of the norm are not loaded."""
    backbone = MAEBackbone.from_pretrained(folder, apply_layernorm=False)
    images = torch.randn(1, 3, 32, 32)
    (feature_map,) = backbone(images).feature_maps
    tokens = MAEModel.from_pretrained(folder)(images, output_hidden_states=True).hidden_states[-1]
    assert_close(feature_map.flatten(2).transpose(1, 2), tokens[:, 1:], atol=0, rtol=0)
    assert not [key for key in backbone.state_dict() if "encoder.norm" in key]


@pytest.mark.parametrize("kind", [MAEModel, MAEForPreTraining, MAEForImageClassification, MAEBackbone])
def test_backbone_comes_from_the_folder_of_any_model(kind, tiny_config, tmp_path):
    model = kind(tiny_config(pooling="cls"))
    model.save_pretrained(tmp_path)
    for apply_layernorm in (False, True):
        loading = {"output_loading_info": True, "apply_layernorm": apply_layernorm}
        backbone, info = MAEBackbone.from_pretrained(tmp_path, **loading)
        assert not info["missing_keys"] and not info["unexpected_keys"]
    weights = getattr(model, "mae", model).state_dict()
    assert all(torch.equal(value, weights[key]) for key, value in backbone.mae.state_dict().items())
    for made in (backbone, MAEBackbone(model.config)):  # the position embeddings too, as in a classifier
        assert all(parameter.requires_grad for parameter in made.parameters())


def test_backbone_warns_about_the_norm_missing_in_a_classifier_with_mean_pooling(tiny_config, tmp_path):
    MAEForImageClassification(tiny_config(pooling="mean")).save_pretrained(tmp_path)
    with pytest.warns(UntrainedWeightsWarning, match="no norm after the last block"):
        MAEBackbone.from_pretrained(tmp_path)
    MAEBackbone.from_pretrained(tmp_path, apply_layernorm=False)  # needs none


def rectangles(batch):
    """Images with a bright rectangle each, and the map of its pixels."""
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.zeros(batch, 3, 32, 48), torch.zeros(batch, 32, 48, dtype=torch.long)
    for n in range(batch):
        top, left = (8 * int(torch.randint(0, high, (), generator=generator)) for high in (3, 5))
        images[n, :, top : top + 16, left : left + 16] = 1
        labels[n, top : top + 16, left : left + 16] = 1
    return images, labels


def test_upernet_segments_with_it(folder, tmp_path):
    """It learns where the rectangles are, and gives the same numbers after saving and loading."""
    torch.manual_seed(0)
    config = UperNetConfig(
        backbone_config=MAEConfig.from_pretrained(folder, out_indices=[1, 2]),
        hidden_size=32,
        pool_scales=[1, 2],
        use_auxiliary_head=False,
        num_labels=2,
    )
    model = UperNetForSemanticSegmentation(config).train()
    model.backbone = MAEBackbone.from_pretrained(folder, out_indices=[1, 2])
    images, labels = rectangles(8)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    for _ in range(40):
        loss = model(images, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    found = model(images).logits.argmax(1)
    assert (found == labels).float().mean() > 0.95  # 0.83 is background
    model.save_pretrained(tmp_path / "upernet")
    again = UperNetForSemanticSegmentation.from_pretrained(tmp_path / "upernet").eval()
    assert isinstance(again.backbone, MAEBackbone)
    assert torch.equal(again(images).logits, model(images).logits)


@pytest.mark.heavy  # DETR needs SciPy
def test_detr_detects_with_it(folder):
    torch.manual_seed(0)
    sizes = {f"{part}_{name}": n for part in ("encoder", "decoder") for name, n in (("layers", 1), ("ffn_dim", 64))}
    config = DetrConfig(
        backbone_config=MAEConfig.from_pretrained(folder),
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        d_model=32,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        num_queries=3,
        num_labels=2,
        dropout=0.0,
        **sizes,
    )
    model = DetrForObjectDetection(config).train()
    targets = [{"class_labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.5, 0.3, 0.3]])}] * 2
    images = torch.randn(2, 3, 32, 48)
    optimizer, losses = torch.optim.AdamW(model.parameters(), 2e-3), []
    for _ in range(30):
        losses.append(model(images, labels=targets).loss)
        losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.7 * losses[0]


def test_auto_backbone_builds_it_from_a_config(folder):
    backbone = AutoBackbone.from_config(MAEConfig.from_pretrained(folder, out_features=["stage1"]))
    assert isinstance(backbone, MAEBackbone) and backbone.out_features == ["stage1"]


def test_conversion_keeps_the_choice_of_feature_maps(tiny_config, tmp_path):
    MAEBackbone(tiny_config(out_indices=[0, 2])).save_pretrained(tmp_path / "backbone")
    assert main(["convert", str(tmp_path / "backbone"), str(tmp_path / "converted")]) == 0
    assert MAEBackbone.from_pretrained(tmp_path / "converted").out_features == ["stem", "stage2"]


def test_conversion_refuses_a_backbone_without_the_final_norm(tiny_config, tmp_path, capsys):
    MAEBackbone(tiny_config(apply_layernorm=False)).save_pretrained(tmp_path / "backbone")
    assert main(["convert", str(tmp_path / "backbone"), str(tmp_path / "converted")]) == 1
    assert "has no final norm, so it is not a complete encoder" in capsys.readouterr().err


def test_size_can_be_set_and_blocks_be_checkpointed(folder):
    backbone = MAEBackbone.from_pretrained(folder).train()
    backbone.set_image_size((48, 32))
    images = torch.randn(2, 3, 48, 32)
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            getattr(backbone, "activation_checkpointing_enable", backbone.gradient_checkpointing_enable)()
        backbone.zero_grad()
        backbone(images, interpolate_pos_encoding=False).feature_maps[0].pow(3).mean().backward()
        gradients.append(backbone.mae.encoder.blocks[0].attn.qkv.weight.grad)
    assert torch.equal(*gradients)


def test_feature_maps_come_from_one_graph(folder):
    backbone = MAEBackbone.from_pretrained(folder, out_indices=[1, 2])
    torch.compiler.reset()
    compiled = torch.compile(backbone, fullgraph=True, backend="aot_eager")
    images = torch.randn(2, 3, 32, 48)
    with torch.no_grad():
        assert_close(compiled(images).feature_maps, backbone(images).feature_maps, atol=5e-6, rtol=0)
