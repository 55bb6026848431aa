"""What an official checkpoint is, and the configuration that its keys, shapes and training arguments tell."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mae_hf.checkpoint import CheckpointError
from mae_hf.configuration_mae import PRESETS, MAEConfig
from mae_hf.key_maps import count_blocks, native_to_official, official_to_native
from mae_hf.modeling_mae import MAEForPreTraining, MAEModel
from mae_hf.patch_embed import square_grid

PRETRAINING, ENCODER = "pretraining", "encoder"
FINETUNED, FINETUNED_CLS, LINPROBE = "finetuned", "finetuned_cls", "linprobe"
DESCRIPTIONS = {
    PRETRAINING: "pretraining model, encoder and decoder",
    ENCODER: "encoder only, no decoder",
    FINETUNED: "classifier with mean pooling",
    FINETUNED_CLS: "classifier on the class token",
    LINPROBE: "linear probe",
}
_PRESETS = [MAEConfig.from_preset(name) for name in PRESETS]
_HEADS = {preset.hidden_size: preset.num_attention_heads for preset in _PRESETS}  # by width
_DECODER_HEADS = {preset.decoder_hidden_size: preset.decoder_num_attention_heads for preset in _PRESETS}
MODEL_CLASSES = {PRETRAINING: MAEForPreTraining, ENCODER: MAEModel}


def kind_of(keys: Iterable[str]) -> str:
    """Tell the kind of an official state dict by its keys.

    Raises:
        CheckpointError: If they are the keys of another model.
    """
    keys = list(keys)
    anchors = {"cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.norm1.weight"}
    if lacking := sorted(anchors.difference(keys)):
        raise CheckpointError(
            f"these are the weights of another model: no {', '.join(lacking)}; the first keys are {', '.join(keys[:3])}"
        )
    if any(key.startswith("head.") for key in keys):
        if "head.0.running_mean" in keys:
            return LINPROBE
        return FINETUNED if any(key.startswith("fc_norm.") for key in keys) else FINETUNED_CLS
    return PRETRAINING if any(key.startswith("decoder_") for key in keys) else ENCODER


@dataclass(frozen=True)
class Hints:
    """What the tensors do not tell, as given by the caller; None stands for not given."""

    num_attention_heads: int | None = None
    decoder_num_attention_heads: int | None = None
    image_size: tuple[int, int] | None = None


NO_HINTS = Hints()


def read_sizes(state_dict: Mapping[str, Tensor], kind: str, hints: Hints = NO_HINTS) -> dict[str, Any]:
    """Read sizes from shapes, and heads from the hints or from the preset of the same width.

    Args:
        state_dict: Official keys.
        kind: "pretraining", "encoder", or a kind of classifier, whose encoder is described.
        hints: What the shapes do not tell.

    Returns:
        Fields of the config; None for heads that nothing tells.

    Raises:
        CheckpointError: If a tensor is missing or of a wrong shape, or the image size cannot be told.
    """
    width, channels, patch_size, _ = _shape(state_dict, "patch_embed.proj.weight", 4)
    _, num_rows, _ = _shape(state_dict, "pos_embed", 3)
    heads = hints.num_attention_heads
    sizes = {
        "image_size": _image_size(num_rows - 1, patch_size, hints.image_size),
        "patch_size": patch_size,
        "num_channels": channels,
        "hidden_size": width,
        "num_hidden_layers": count_blocks(state_dict, "blocks."),
        "num_attention_heads": _HEADS.get(width) if heads is None else heads,
        "intermediate_size": _shape(state_dict, "blocks.0.mlp.fc1.weight", 2)[0],
        "qkv_bias": "blocks.0.attn.qkv.bias" in state_dict,
    }
    if kind == PRETRAINING:
        width, heads = _shape(state_dict, "decoder_embed.weight", 2)[0], hints.decoder_num_attention_heads
        sizes |= {
            "decoder_hidden_size": width,
            "decoder_num_hidden_layers": count_blocks(state_dict, "decoder_blocks."),
            "decoder_num_attention_heads": _DECODER_HEADS.get(width) if heads is None else heads,
            "decoder_intermediate_size": _shape(state_dict, "decoder_blocks.0.mlp.fc1.weight", 2)[0],
        }
    return sizes


def infer_config(state_dict: Mapping[str, Tensor], kind: str, hints: Hints = NO_HINTS, **fields: Any) -> MAEConfig:
    """Make the configuration of a checkpoint; see `read_sizes`.

    Args:
        state_dict: Official keys.
        kind: "pretraining" or "encoder".
        hints: What the shapes do not tell.
        **fields: Further fields, such as `mask_ratio`.

    Raises:
        CheckpointError: If a tensor is missing or of a wrong shape, heads or image size cannot be told, or sizes
            contradict each other.
    """
    sizes = read_sizes(state_dict, kind, hints)
    if unknown := [f"--{name.replace('_', '-')} N" for name, value in sizes.items() if value is None]:
        raise CheckpointError(
            "the number of heads is not in the weights, and no released model has these widths: "
            f"give it with {' '.join(unknown)}"
        )
    try:
        return MAEConfig(**sizes, **fields)
    except ValueError as error:
        raise CheckpointError(f"the sizes in the checkpoint do not fit: {error}") from error


def to_native(state_dict: Mapping[str, Tensor], kind: str) -> dict[str, Tensor]:
    """Rename to native keys, without `mae.` for a lone encoder."""
    native = official_to_native(state_dict)
    return native if kind == PRETRAINING else {key.removeprefix("mae."): value for key, value in native.items()}


def check_complete(state_dict: Mapping[str, Tensor], kind: str, config: MAEConfig) -> None:
    """Raise `CheckpointError`, naming keys, unless the model of this config has just these keys and shapes."""
    with torch.device("meta"):
        wanted = MODEL_CLASSES[kind](config).state_dict()
    if kind == ENCODER:
        wanted = {f"mae.{key}": value for key, value in wanted.items()}
    wanted = native_to_official(wanted)
    problems = {
        "missing": [key for key in wanted if key not in state_dict],
        "not known": [key for key in state_dict if key not in wanted],
        "of a type that no weight has": [key for key in state_dict if not state_dict[key].is_floating_point()],
        "of a shape that contradicts the others": [
            f"{key} {tuple(state_dict[key].shape)}, not {tuple(wanted[key].shape)}"
            for key in wanted
            if key in state_dict and state_dict[key].shape != wanted[key].shape
        ],
    }
    for what, keys in problems.items():
        if keys:
            raise CheckpointError(
                f"keys are {what} ({len(keys)}): {', '.join(keys[:4])}{' ...' if len(keys) > 4 else ''}"
            )


def preset_of(sizes: Mapping[str, Any]) -> str | None:
    """Name of the preset whose encoder has these sizes (fields of the config), or None."""
    same = (name for name, preset in PRESETS.items() if preset.items() <= sizes.items())
    return next(same, None)


def _shape(state_dict: Mapping[str, Tensor], key: str, ndim: int) -> tuple[int, ...]:
    if key not in state_dict:
        raise CheckpointError(f"the checkpoint lacks {key}")
    shape = tuple(state_dict[key].shape)
    if len(shape) != ndim or 0 in shape:
        raise CheckpointError(f"{key} must have {ndim} dimensions, none of size 0, got the shape {shape}")
    return shape


def _image_size(num_patches: int, patch_size: int, given: tuple[int, int] | None) -> int | tuple[int, int]:
    if given is not None:
        height, width = given
        if (height // patch_size) * (width // patch_size) != num_patches:
            raise CheckpointError(f"an image of {height}x{width} does not have the checkpoint's {num_patches} patches")
        return given if height != width else height
    try:
        return square_grid(num_patches)[0] * patch_size
    except ValueError as error:
        raise CheckpointError(f"{error}, with --image-size HEIGHT WIDTH") from error
