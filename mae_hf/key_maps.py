"""Key names of other layouts, whole keys one to one.

Native keys are those of `MAEForPreTraining`; a lone `MAEModel` has the same without `mae.`.
"""

from collections.abc import Iterable, Mapping
from typing import TypeVar

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


def official_to_native_names(depth: int, decoder_depth: int) -> dict[str, str]:
    """Every official key of a pretraining model, in the official order, with its native name.

    Args:
        depth: Blocks of the encoder.
        decoder_depth: Blocks of the decoder.

    Source: `MaskedAutoencoderViT.__init__` in facebookresearch/mae, whose order of registration this is.
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
    }


def count_blocks(keys: Iterable[str], prefix: str) -> int:
    """Number of blocks under `prefix`, such as "blocks." or "decoder.blocks."."""
    numbers = {key.removeprefix(prefix).split(".")[0] for key in keys if key.startswith(prefix)}
    return sum(number.isdecimal() for number in numbers)


def official_to_native(state_dict: Mapping[str, Value]) -> dict[str, Value]:
    """Rename official keys to native ones; a key that is not official stays as it is."""
    names = official_to_native_names(count_blocks(state_dict, "blocks."), count_blocks(state_dict, "decoder_blocks."))
    return {names.get(key, key): value for key, value in state_dict.items()}


def native_to_official(state_dict: Mapping[str, Value]) -> dict[str, Value]:
    """Rename native keys to official ones and put them into the official order; others stay, at the end."""
    names = official_to_native_names(
        count_blocks(state_dict, "mae.encoder.blocks."), count_blocks(state_dict, "decoder.blocks.")
    )
    renamed = {official: state_dict[native] for official, native in names.items() if native in state_dict}
    others = {key: value for key, value in state_dict.items() if key not in names.values()}
    return {**renamed, **others}
