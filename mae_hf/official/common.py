"""What `models_mae` and `models_vit` share: sizes as official arguments, layer norms, checks, parameter groups."""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

from ..configuration_mae import MAEConfig
from ..patch_embed import PatchEmbed, check_images

LAYER_NORM = partial(nn.LayerNorm, eps=1e-6)

# timm matches these from the start of a name: layer 0, layers 1 to depth, and a last one for all that match neither.
# timm's own ViTs put `norm` into the layer of the last block; util/lr_decay.py of the official code, into the last one.
GROUPS = {"stem": r"(?:cls_token|pos_embed|patch_embed)", "blocks": r"blocks\.(\d+)"}


def encoder_arguments(config: MAEConfig) -> dict[str, Any]:
    """Return the sizes of an encoder under the argument names of the official constructors."""
    return {
        "patch_size": config.patch_size,
        "embed_dim": config.hidden_size,
        "depth": config.num_hidden_layers,
        "num_heads": config.num_attention_heads,
        "mlp_ratio": config.intermediate_size / config.hidden_size,
    }


def epsilon_of(norm_layer: Callable[[int], nn.Module]) -> float:
    """Return the epsilon of the layer norms that `norm_layer(width)` makes.

    Raises:
        ValueError: If they are not plain `nn.LayerNorm` with weight and bias.
    """
    norm = norm_layer(1)
    if type(norm) is not nn.LayerNorm or norm.bias is None:
        raise ValueError(f"norm_layer must make a plain nn.LayerNorm with weight and bias, got {norm}")
    return norm.eps


def check_size(imgs: Tensor, patch_embed: PatchEmbed) -> None:
    """Raise `ValueError` unless `imgs` is `(B, C, H, W)` with the channels and the size of the model."""
    check_images(imgs, patch_embed.in_chans)
    found, expected = tuple(imgs.shape[2:]), tuple(patch_embed.img_size)
    if found != expected:
        raise ValueError(f"the images have {found} pixels, the model was built with img_size={expected}")
