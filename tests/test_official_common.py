"""Parameter groups of optimizers: what timm makes of `group_matcher` equals the groups of the official recipes.

The whole groups (members, learning rate scales, weight decay) were compared with `param_groups_layer_decay`,
`param_groups_weight_decay` and `create_optimizer_v2` of timm 1.0.31. timm needs torchvision, which these tests do not
install, so `timm_layers` states what `timm.models.group_parameters` does with a dictionary of patterns.
"""

import re

import pytest

from mae_hf.official.models_mae import MaskedAutoencoder
from mae_hf.official.models_vit import VisionTransformer
from tests.helpers.official import TINY_MAE, TINY_VIT

BLOCK = (
    *("norm1.weight", "norm1.bias", "attn.qkv.weight", "attn.qkv.bias", "attn.proj.weight", "attn.proj.bias"),
    *("norm2.weight", "norm2.bias", "mlp.fc1.weight", "mlp.fc1.bias", "mlp.fc2.weight", "mlp.fc2.bias"),
)
# layers of the official util/lr_decay.py for two blocks, written out
EMBEDDINGS = {"cls_token": 0, "pos_embed": 0, "patch_embed.proj.weight": 0, "patch_embed.proj.bias": 0}
BLOCKS = {f"blocks.{n}.{name}": n + 1 for n in (0, 1) for name in BLOCK}
DECODER = {
    **dict.fromkeys(("mask_token", "decoder_pos_embed", "decoder_embed.weight", "decoder_embed.bias"), 3),
    **{f"decoder_blocks.{n}.{name}": 3 for n in (0, 1) for name in BLOCK},
    **dict.fromkeys(("decoder_norm.weight", "decoder_norm.bias", "decoder_pred.weight", "decoder_pred.bias"), 3),
}
NORM = {"norm.weight": 3, "norm.bias": 3}
FC_NORM = {"fc_norm.weight": 3, "fc_norm.bias": 3}
HEAD = {"head.weight": 3, "head.bias": 3}


def timm_layers(model):
    """Layer of each parameter as timm 1.0.31 reads `group_matcher`: ordinals of matches, sorted and numbered."""
    patterns = [re.compile(pattern) for pattern in model.group_matcher(coarse=False).values()]

    def ordinal(name):
        for number, pattern in enumerate(patterns):
            if match := pattern.match(name):
                return (float(number), *map(float, match.groups()))
        return (float("inf"),)

    ordinals = {name: ordinal(name) for name, _ in model.named_parameters()}
    layers = {found: layer for layer, found in enumerate(sorted(set(ordinals.values())))}
    return {name: layers[found] for name, found in ordinals.items()}


@pytest.mark.parametrize(
    ("global_pool", "num_classes", "last"),
    [(True, 10, HEAD | FC_NORM), (False, 10, NORM | HEAD), (True, 0, FC_NORM), (False, 0, NORM)],
)
def test_layers_of_a_classifier_are_the_official_ones(global_pool, num_classes, last):
    model = VisionTransformer(global_pool=global_pool, num_classes=num_classes, **TINY_VIT)
    assert timm_layers(model) == EMBEDDINGS | BLOCKS | last


def test_layers_of_a_pretraining_model_follow_the_same_rule():
    assert timm_layers(MaskedAutoencoder(**TINY_MAE)) == EMBEDDINGS | BLOCKS | NORM | DECODER


def test_layers_of_deep_models_are_in_numerical_order():
    layers = timm_layers(VisionTransformer(**{**TINY_VIT, "depth": 12}))
    assert [layers[f"blocks.{n}.norm1.weight"] for n in range(12)] == list(range(1, 13))
    assert layers["head.weight"] == 13


def test_weight_decay_spares_what_the_official_recipes_spare():
    """main_finetune.py passes `no_weight_decay()`; main_pretrain.py decays every trainable matrix and token."""
    assert VisionTransformer(**TINY_VIT).no_weight_decay() == {"pos_embed", "cls_token"}
    model = MaskedAutoencoder(**TINY_MAE)
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert model.no_weight_decay() == frozen == {"pos_embed", "decoder_pos_embed"}
