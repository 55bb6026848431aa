"""Key names of other layouts, whole keys one to one.

Native keys are those of `MAEForPreTraining` and `MAEForImageClassification`; a lone `MAEModel` has the same without
`mae.`. timm's `.mae` models have the official names of the encoder.
"""

from collections.abc import Iterable, Mapping
from typing import TypeVar

import torch
from torch import Tensor

Value = TypeVar("Value")

_BLOCK = (
    "norm1.weight",
    "norm1.bias",
    "attn.qkv.weight",
    "attn.qkv.bias",
    "attn.proj.weight",
    "attn.proj.bias",
    "norm2.weight",
    "norm2.bias",
    "mlp.fc1.weight",
    "mlp.fc1.bias",
    "mlp.fc2.weight",
    "mlp.fc2.bias",
)

_VIT_MAE_BLOCK: dict[str, tuple[str, ...]] = {
    "norm1.weight": ("layernorm_before.weight",),
    "norm1.bias": ("layernorm_before.bias",),
    "attn.qkv.weight": tuple(f"attention.attention.{part}.weight" for part in ("query", "key", "value")),
    "attn.qkv.bias": tuple(f"attention.attention.{part}.bias" for part in ("query", "key", "value")),
    "attn.proj.weight": ("attention.output.dense.weight",),
    "attn.proj.bias": ("attention.output.dense.bias",),
    "norm2.weight": ("layernorm_after.weight",),
    "norm2.bias": ("layernorm_after.bias",),
    "mlp.fc1.weight": ("intermediate.dense.weight",),
    "mlp.fc1.bias": ("intermediate.dense.bias",),
    "mlp.fc2.weight": ("output.dense.weight",),
    "mlp.fc2.bias": ("output.dense.bias",),
}


def official_to_native_names(depth: int, decoder_depth: int) -> dict[str, str]:
    """Every official key of pretraining models and classifiers, in the official order, with its native name.

    Each kind of checkpoint has some of them: `head.0` and `head.1` belong to linear probes, `fc_norm` to mean pooling.

    Args:
        depth: Blocks of the encoder.
        decoder_depth: Blocks of the decoder.

    Source: the order of registration in `MaskedAutoencoderViT` and `VisionTransformer` of facebookresearch/mae.
    """
    return {
        "cls_token": "mae.cls_token",
        "pos_embed": "mae.pos_embed",
        "mask_token": "decoder.mask_token",
        "decoder_pos_embed": "decoder.pos_embed",
        "patch_embed.proj.weight": "mae.patch_embed.proj.weight",
        "patch_embed.proj.bias": "mae.patch_embed.proj.bias",
        **{f"blocks.{n}.{part}": f"mae.encoder.blocks.{n}.{part}" for n in range(depth) for part in _BLOCK},
        "norm.weight": "mae.encoder.norm.weight",
        "norm.bias": "mae.encoder.norm.bias",
        "decoder_embed.weight": "decoder.embed.weight",
        "decoder_embed.bias": "decoder.embed.bias",
        **{f"decoder_blocks.{n}.{part}": f"decoder.blocks.{n}.{part}" for n in range(decoder_depth) for part in _BLOCK},
        "decoder_norm.weight": "decoder.norm.weight",
        "decoder_norm.bias": "decoder.norm.bias",
        "decoder_pred.weight": "decoder.pred.weight",
        "decoder_pred.bias": "decoder.pred.bias",
        "head.weight": "head.weight",
        "head.bias": "head.bias",
        "head.0.running_mean": "head.0.running_mean",
        "head.0.running_var": "head.0.running_var",
        "head.0.num_batches_tracked": "head.0.num_batches_tracked",
        "head.1.weight": "head.1.weight",
        "head.1.bias": "head.1.bias",
        "fc_norm.weight": "fc_norm.weight",
        "fc_norm.bias": "fc_norm.bias",
    }


def native_to_vit_mae_names(depth: int, decoder_depth: int) -> dict[str, tuple[str, ...]]:
    """Every native key of a pretraining model with its names in ViTMAE of transformers, as files on the Hub have them.

    Three names stand for query, key and value, which are one weight here.

    Args:
        depth: Blocks of the encoder.
        decoder_depth: Blocks of the decoder.
    """
    return {
        "mae.cls_token": ("vit.embeddings.cls_token",),
        "mae.pos_embed": ("vit.embeddings.position_embeddings",),
        "mae.patch_embed.proj.weight": ("vit.embeddings.patch_embeddings.projection.weight",),
        "mae.patch_embed.proj.bias": ("vit.embeddings.patch_embeddings.projection.bias",),
        **_vit_mae_blocks("mae.encoder.blocks", "vit.encoder.layer", depth),
        "mae.encoder.norm.weight": ("vit.layernorm.weight",),
        "mae.encoder.norm.bias": ("vit.layernorm.bias",),
        "decoder.embed.weight": ("decoder.decoder_embed.weight",),
        "decoder.embed.bias": ("decoder.decoder_embed.bias",),
        "decoder.mask_token": ("decoder.mask_token",),
        "decoder.pos_embed": ("decoder.decoder_pos_embed",),
        **_vit_mae_blocks("decoder.blocks", "decoder.decoder_layers", decoder_depth),
        "decoder.norm.weight": ("decoder.decoder_norm.weight",),
        "decoder.norm.bias": ("decoder.decoder_norm.bias",),
        "decoder.pred.weight": ("decoder.decoder_pred.weight",),
        "decoder.pred.bias": ("decoder.decoder_pred.bias",),
    }


def _vit_mae_blocks(native: str, vit_mae: str, depth: int) -> dict[str, tuple[str, ...]]:
    return {
        f"{native}.{n}.{part}": tuple(f"{vit_mae}.{n}.{name}" for name in names)
        for n in range(depth)
        for part, names in _VIT_MAE_BLOCK.items()
    }


def count_blocks(keys: Iterable[str], prefix: str) -> int:
    """Number of blocks under `prefix`, such as "blocks." or "decoder.blocks."."""
    numbers = {key.removeprefix(prefix).split(".")[0] for key in keys if key.startswith(prefix)}
    return sum(number.isdecimal() for number in numbers)


def official_to_native(state_dict: Mapping[str, Value]) -> dict[str, Value]:
    """Rename official keys to native ones; others stay. Raises `ValueError` if two keys would become one."""
    names = official_to_native_names(count_blocks(state_dict, "blocks."), count_blocks(state_dict, "decoder_blocks."))
    return _rename(state_dict, names)


def native_to_official(state_dict: Mapping[str, Value]) -> dict[str, Value]:
    """Rename native keys to official ones and put them into the official order; others stay, at the end."""
    names = official_to_native_names(
        count_blocks(state_dict, "mae.encoder.blocks."), count_blocks(state_dict, "decoder.blocks.")
    )
    renamed = {official: state_dict[native] for official, native in names.items() if native in state_dict}
    others = {key: value for key, value in state_dict.items() if key not in names.values()}
    return {**renamed, **others}


def native_to_vit_mae(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename native keys to those of ViTMAE and split query, key and value; other keys stay, at the end."""
    names = native_to_vit_mae_names(
        count_blocks(state_dict, "mae.encoder.blocks."), count_blocks(state_dict, "decoder.blocks.")
    )
    renamed: dict[str, Tensor] = {}
    for native, vit_mae in names.items():
        if native in state_dict:
            renamed |= zip(vit_mae, state_dict[native].chunk(len(vit_mae)), strict=True)
    return {**renamed, **{key: value for key, value in state_dict.items() if key not in names}}


def vit_mae_to_native(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename ViTMAE's keys (see `as_on_the_hub`) to native ones and fuse query, key and value; other keys stay.

    Where one of the three is missing or of another shape or dtype, they stay as they are.

    Raises:
        ValueError: If two keys would become one.
    """
    names = native_to_vit_mae_names(
        count_blocks(state_dict, "vit.encoder.layer."), count_blocks(state_dict, "decoder.decoder_layers.")
    )
    renamed: dict[str, Tensor] = {}
    others = dict(state_dict)
    for native, vit_mae in names.items():
        parts = [state_dict[key] for key in vit_mae if key in state_dict]
        if len(parts) == len(vit_mae) and len({(part.shape, part.dtype) for part in parts}) == 1:
            renamed[native] = torch.cat(parts) if len(parts) > 1 else parts[0]
            for key in vit_mae:
                del others[key]
    for key, value in others.items():
        _put(renamed, key, value)
    return renamed


def as_on_the_hub(state_dict: Mapping[str, Value]) -> dict[str, Value]:
    """Give ViTMAE's keys the names that the files on the Hub have.

    A lone `ViTMAEModel` is saved without `vit.`, and transformers 5.23 saves blocks of a decoder under another name.

    Raises:
        ValueError: If two keys would become one.
    """
    depth = count_blocks(state_dict, "decoder.decoder_encoder.layer.")
    block = [name for names in _VIT_MAE_BLOCK.values() for name in names]
    names = {
        f"decoder.decoder_encoder.layer.{n}.{part}": f"decoder.decoder_layers.{n}.{part}"
        for n in range(depth)
        for part in block
    }
    if "embeddings.cls_token" in state_dict:
        names |= {key: f"vit.{key}" for key in state_dict}
    return _rename(state_dict, names)


def _rename(state_dict: Mapping[str, Value], names: Mapping[str, str]) -> dict[str, Value]:
    renamed: dict[str, Value] = {}
    for key, value in state_dict.items():
        _put(renamed, names.get(key, key), value)
    return renamed


def _put(state_dict: dict[str, Value], key: str, value: Value) -> None:
    if key in state_dict:
        raise ValueError(f"two of the keys stand for {key}")
    state_dict[key] = value
