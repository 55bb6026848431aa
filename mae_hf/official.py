"""What the two official calling conventions share: arguments of the sizes, layer norms, the size of images."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

from .configuration_mae import PRESETS, unknown_name
from .patch_embed import PatchEmbed, check_images

LAYER_NORM = partial(nn.LayerNorm, eps=1e-6)


def epsilon_of(norm_layer: Callable[[int], nn.Module]) -> float:
    """Epsilon of the layer norms that `norm_layer(width)` makes; raises `ValueError` if they are no plain ones."""
    norm = norm_layer(1)
    if type(norm) is not nn.LayerNorm or norm.bias is None:
        raise ValueError(f"norm_layer must make a plain nn.LayerNorm with weight and bias, got {norm}")
    return norm.eps


def arguments_of_size(preset: str, model_class: type[nn.Module], overrides: dict[str, Any]) -> dict[str, Any]:
    """Arguments of an official model class for a size of the paper; an unknown override raises `ValueError`."""
    known = inspect.signature(model_class).parameters
    for name in overrides:
        if name not in known:
            raise unknown_name("argument", name, known)
    sizes = PRESETS[preset]
    return {
        "patch_size": sizes["patch_size"],
        "embed_dim": sizes["hidden_size"],
        "depth": sizes["num_hidden_layers"],
        "num_heads": sizes["num_attention_heads"],
        "mlp_ratio": sizes["intermediate_size"] / sizes["hidden_size"],
        **overrides,
    }


def check_size(imgs: Tensor, patch_embed: PatchEmbed) -> None:
    """Raise `ValueError` unless these are images `(B, C, H, W)` of the size that the model was built with."""
    check_images(imgs, patch_embed.in_chans)
    found, wanted = tuple(imgs.shape[2:]), tuple(patch_embed.img_size)
    if found != wanted:
        raise ValueError(f"the images have {found} pixels, the model was built with img_size={wanted}")
