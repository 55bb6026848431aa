"""The layouts of weights: how to tell them, and the way of their keys to and from native ones.

| layout | where it is met |
|---|---|
| official | `.pth` files of the official repository and of training with it |
| mae_hf | folders of this package |
| vit_mae | folders of transformers' ViTMAE, with the key names that the files on the Hub have |
| timm | folders of timm's `.mae` models: an encoder under its official names |
"""

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor
from transformers import ViTMAEConfig

from mae_hf.checkpoint import CheckpointError
from mae_hf.configuration_mae import MAEConfig
from mae_hf.key_maps import as_on_the_hub, native_to_official, native_to_vit_mae, official_to_native, vit_mae_to_native

from .kinds import ENCODER

OFFICIAL, MAE_HF, VIT_MAE, TIMM = LAYOUTS = ("official", "mae_hf", "vit_mae", "timm")

_ANCHORS = {
    OFFICIAL: {"cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.norm1.weight"},
    MAE_HF: {"mae.cls_token", "mae.pos_embed", "mae.patch_embed.proj.weight", "mae.encoder.blocks.0.norm1.weight"},
    VIT_MAE: {
        "vit.embeddings.cls_token",
        "vit.embeddings.position_embeddings",
        "vit.embeddings.patch_embeddings.projection.weight",
        "vit.encoder.layer.0.layernorm_before.weight",
    },
}


def as_whole_model(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give the weights of a lone `MAEModel` or `ViTMAEModel` the names that they have in the whole model."""
    if "encoder.blocks.0.norm1.weight" in state_dict:
        return {f"mae.{key}": value for key, value in state_dict.items()}
    return as_on_the_hub(state_dict)


def layout_of_keys(keys: Collection[str]) -> str:
    """Tell the layout of the keys of a whole model: "official" (or timm's, which is the same), "mae_hf" or "vit_mae".

    Raises:
        CheckpointError: If they are the keys of another model.
    """
    missing = {layout: sorted(anchors.difference(keys)) for layout, anchors in _ANCHORS.items()}
    nearest = min(missing, key=lambda layout: len(missing[layout]))
    if lacking := missing[nearest]:
        raise CheckpointError(
            f"these are the weights of another model: no {', '.join(lacking)}; "
            f"the first keys are {', '.join(list(keys)[:3])}"
        )
    return nearest


def layout_of_config(fields: Mapping[str, Any]) -> str:
    """Tell the layout of a folder by its `config.json`.

    Raises:
        CheckpointError: If it is of another model.
    """
    layouts = {MAEConfig.model_type: MAE_HF, ViTMAEConfig.model_type: VIT_MAE}
    if isinstance(model_type := fields.get("model_type"), str) and model_type in layouts:
        return layouts[model_type]
    if model_type is None and isinstance(fields.get("architecture"), str):
        return TIMM
    raise CheckpointError(f"its config.json is that of a {model_type!r} model, not of a masked autoencoder")


def to_native(layout: str, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the keys of a layout to native ones; those that are not known stay."""
    if layout == VIT_MAE:
        return vit_mae_to_native(state_dict)
    return dict(state_dict) if layout == MAE_HF else official_to_native(state_dict)


def from_native(layout: str, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename native keys to those of a layout."""
    if layout == VIT_MAE:
        return native_to_vit_mae(state_dict)
    return dict(state_dict) if layout == MAE_HF else native_to_official(state_dict)


def as_own_class(layout: str, kind: str, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The other way round from `as_whole_model`: a lone encoder's names as its own model class has them."""
    prefix = {MAE_HF: "mae.", VIT_MAE: "vit."}.get(layout, "") if kind == ENCODER else ""
    return {key.removeprefix(prefix): value for key, value in state_dict.items()}
