"""Maps between the key names of layouts: whole keys, one to one.

Native keys are those of `MAEForPreTraining` and `MAEForImageClassification`; a lone `MAEModel` has the same without
`mae.`. timm's `.mae` models have the official names of the encoder.
"""

import re
from collections.abc import Iterable, Mapping
from typing import TypeVar

import torch
from torch import Tensor

Value = TypeVar("Value")
_PARAMETERS = ("weight", "bias")

_VIT_MAE_BLOCK = {  # the parts of a block, and their names in ViTMAE
    "norm1": ("layernorm_before",),
    "attn.qkv": ("attention.attention.query", "attention.attention.key", "attention.attention.value"),
    "attn.proj": ("attention.output.dense",),
    "norm2": ("layernorm_after",),
    "mlp.fc1": ("intermediate.dense",),
    "mlp.fc2": ("output.dense",),
}


def official_to_native_names(depth: int, decoder_depth: int) -> dict[str, str]:
    """Map every official key of pretraining models and classifiers, in the official order, to its native name.

    Each kind of checkpoint has some of them: `head.0` and `head.1` belong to linear probes, `fc_norm` to mean pooling.

    Args:
        depth: Blocks of the encoder.
        decoder_depth: Blocks of the decoder.

    Source: the order of registration in `MaskedAutoencoderViT` and `VisionTransformer` of facebookresearch/mae.
    """
    modules = {
        "patch_embed.proj": "mae.patch_embed.proj",
        **{f"blocks.{n}.{part}": f"mae.encoder.blocks.{n}.{part}" for n in range(depth) for part in _VIT_MAE_BLOCK},
        "norm": "mae.encoder.norm",
        "decoder_embed": "decoder.embed",
        **{f"decoder_blocks.{n}.{x}": f"decoder.blocks.{n}.{x}" for n in range(decoder_depth) for x in _VIT_MAE_BLOCK},
        "decoder_norm": "decoder.norm",
        "decoder_pred": "decoder.pred",
        "head": "head",
    }
    return {
        "cls_token": "mae.cls_token",
        "pos_embed": "mae.pos_embed",
        "mask_token": "decoder.mask_token",
        "decoder_pos_embed": "decoder.pos_embed",
        **{f"{official}.{kind}": f"{native}.{kind}" for official, native in modules.items() for kind in _PARAMETERS},
        **{f"head.0.{name}": f"head.0.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")},
        **{f"{name}.{kind}": f"{name}.{kind}" for name in ("head.1", "fc_norm") for kind in _PARAMETERS},
    }


def native_to_vit_mae_names(depth: int, decoder_depth: int) -> dict[str, tuple[str, ...]]:
    """Map every native key of a pretraining model to its names in ViTMAE of transformers, as in files on the Hub.

    A fused query, key and value projection has three names.

    Args:
        depth: Blocks of the encoder.
        decoder_depth: Blocks of the decoder.
    """
    modules = {
        "mae.patch_embed.proj": ("vit.embeddings.patch_embeddings.projection",),
        **_vit_mae_blocks("mae.encoder.blocks", "vit.encoder.layer", depth),
        "mae.encoder.norm": ("vit.layernorm",),
        "decoder.embed": ("decoder.decoder_embed",),
        **_vit_mae_blocks("decoder.blocks", "decoder.decoder_layers", decoder_depth),
        "decoder.norm": ("decoder.decoder_norm",),
        "decoder.pred": ("decoder.decoder_pred",),
    }
    return {
        "mae.cls_token": ("vit.embeddings.cls_token",),
        "mae.pos_embed": ("vit.embeddings.position_embeddings",),
        "decoder.mask_token": ("decoder.mask_token",),
        "decoder.pos_embed": ("decoder.decoder_pos_embed",),
        **{f"{x}.{kind}": tuple(f"{y}.{kind}" for y in names) for x, names in modules.items() for kind in _PARAMETERS},
    }


def _vit_mae_blocks(native: str, vit_mae: str, depth: int) -> dict[str, tuple[str, ...]]:
    return {
        f"{native}.{n}.{part}": tuple(f"{vit_mae}.{n}.{name}" for name in names)
        for n in range(depth)
        for part, names in _VIT_MAE_BLOCK.items()
    }


def count_blocks(keys: Iterable[str], prefix: str) -> int:
    """Count the blocks under `prefix`, such as "blocks." or "decoder.blocks."."""
    numbers = {key.removeprefix(prefix).split(".")[0] for key in keys if key.startswith(prefix)}
    return sum(number.isdecimal() for number in numbers)


def _native_depths(keys: Iterable[str]) -> tuple[int, int]:
    return count_blocks(keys, "mae.encoder.blocks."), count_blocks(keys, "decoder.blocks.")


def official_to_native(state_dict: Mapping[str, Value]) -> dict[str, Value]:
    """Rename official keys to native ones and keep all others; raises `ValueError` if two keys would become one."""
    names = official_to_native_names(count_blocks(state_dict, "blocks."), count_blocks(state_dict, "decoder_blocks."))
    return _rename(state_dict, names)


def native_to_official(state_dict: Mapping[str, Value]) -> dict[str, Value]:
    """Rename native keys to official ones, in the official order; all others follow unchanged."""
    names = official_to_native_names(*_native_depths(state_dict))
    renamed = {official: state_dict[native] for official, native in names.items() if native in state_dict}
    others = {key: value for key, value in state_dict.items() if key not in names.values()}
    return {**renamed, **others}


def native_to_vit_mae(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename native keys to those of ViTMAE and split query, key and value; all others follow unchanged."""
    names = native_to_vit_mae_names(*_native_depths(state_dict))
    renamed: dict[str, Tensor] = {}
    for native, vit_mae in names.items():
        if (whole := state_dict.get(native)) is not None:
            renamed |= zip(vit_mae, whole.tensor_split(3) if len(vit_mae) > 1 else (whole,), strict=True)
    return {**renamed, **{key: value for key, value in state_dict.items() if key not in names}}


def vit_mae_to_native(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename ViTMAE's keys (see `as_on_the_hub`) to native ones and fuse query, key and value; keep all others.

    If one of the three is missing or differs in shape or dtype, they are kept unchanged.

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
        fit = len(parts) == len(vit_mae) and len({(part.shape, part.dtype) for part in parts}) == 1
        if fit and (len(parts) == 1 or parts[0].ndim):
            renamed[native] = torch.cat(parts) if len(parts) > 1 else parts[0]
            for key in vit_mae:
                del others[key]
    for key, value in others.items():
        _put(renamed, key, value, key)
    return renamed


def as_on_the_hub(state_dict: Mapping[str, Value]) -> dict[str, Value]:
    """Rename the keys of a ViTMAE, however it was saved, to those of the files on the Hub.

    A lone `ViTMAEModel` is saved without `vit.`, and transformers 5.23 saves decoder blocks under other names.

    Raises:
        ValueError: If two keys would become one.
    """
    prefix = "vit." if "embeddings.cls_token" in state_dict else ""
    old, new = r"^decoder\.decoder_encoder\.layer\.", "decoder.decoder_layers."
    return _rename(state_dict, {key: prefix + re.sub(old, new, key) for key in state_dict})


def _rename(state_dict: Mapping[str, Value], names: Mapping[str, str]) -> dict[str, Value]:
    renamed: dict[str, Value] = {}
    for key, value in state_dict.items():
        _put(renamed, names.get(key, key), value, key)
    return renamed


def _put(state_dict: dict[str, Value], key: str, value: Value, old_key: str) -> None:
    if key in state_dict:
        raise ValueError(f"{old_key} and another key of the file map to the same weight")
    state_dict[key] = value
