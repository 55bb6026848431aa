"""The configuration of what is converted: from a folder's own, or from keys, shapes and training arguments."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from torch import Tensor

from mae_hf.checkpoint import CheckpointError, first_line
from mae_hf.configuration_mae import PRESETS, MAEConfig, is_count
from mae_hf.key_maps import count_blocks
from mae_hf.patch_embed import square_grid, to_pair
from mae_hf.vit_mae import config_from_vit_mae, warn_about_epsilon

from .kinds import CLASSIFIERS, LINPROBE, PRETRAINING
from .labels import imagenet_labels
from .layouts import MAE_HF, TIMM, VIT_MAE
from .source import Source

_PRESETS = [MAEConfig.from_preset(name) for name in PRESETS]
_HEADS = {preset.hidden_size: preset.num_attention_heads for preset in _PRESETS}  # by width
_DECODER_HEADS = {preset.decoder_hidden_size: preset.decoder_num_attention_heads for preset in _PRESETS}


@dataclass(frozen=True)
class Hints:
    """What the tensors do not tell, as given by the caller; None stands for not given.

    Attributes:
        num_attention_heads: Heads of the encoder.
        decoder_num_attention_heads: Heads of the decoder.
        image_size: (height, width) in pixels.
    """

    num_attention_heads: int | None = None
    decoder_num_attention_heads: int | None = None
    image_size: tuple[int, int] | None = None


NO_HINTS = Hints()
NUM_IMAGENET_CLASSES = 1000


def read_sizes(source: Source, hints: Hints = NO_HINTS) -> dict[str, Any]:
    """Read sizes from a folder's config, or from shapes, and heads from the hints or the preset of the same width.

    Args:
        source: What was read.
        hints: What the shapes do not tell.

    Returns:
        Fields of the config; None for heads that nothing tells.

    Raises:
        CheckpointError: If a tensor is missing or of a wrong shape, or the image size cannot be told.
    """
    if source.layout in (MAE_HF, VIT_MAE):
        return config_of(source, hints).to_dict()
    state_dict = source.state_dict
    if source.layout == TIMM:
        hints = _with_timm(hints, source.fields)
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
    if source.kind == PRETRAINING:
        width, heads = _shape(state_dict, "decoder_embed.weight", 2)[0], hints.decoder_num_attention_heads
        sizes |= {
            "decoder_hidden_size": width,
            "decoder_num_hidden_layers": count_blocks(state_dict, "decoder_blocks."),
            "decoder_num_attention_heads": _DECODER_HEADS.get(width) if heads is None else heads,
            "decoder_intermediate_size": _shape(state_dict, "decoder_blocks.0.mlp.fc1.weight", 2)[0],
        }
    return sizes


def _with_timm(hints: Hints, config: Mapping[str, Any]) -> Hints:
    """Add what the config of a timm folder tells."""
    arguments = config.get("model_args")
    arguments = arguments if isinstance(arguments, dict) else {}
    heads, size = arguments.get("num_heads"), arguments.get("img_size")
    size = [size, size] if isinstance(size, int) else size
    if heads is not None:
        if not is_count(heads):
            raise CheckpointError(f"its config.json is wrong: num_heads must be a positive int, got {heads!r}")
        _check_hint("num_attention_heads", hints.num_attention_heads, heads)
        hints = replace(hints, num_attention_heads=heads)
    if size is not None:
        if not (isinstance(size, list) and len(size) == 2 and all(map(is_count, size))):
            raise CheckpointError(f"its config.json is wrong: img_size must be a side or two of them, got {size!r}")
        _check_hint("image_size", hints.image_size, tuple(size))
        hints = replace(hints, image_size=tuple(size))
    return hints


def config_of(source: Source, hints: Hints = NO_HINTS) -> MAEConfig:
    """Make the configuration of what was read: from a folder's own, or from shapes and training arguments.

    Args:
        source: What was read.
        hints: What the shapes do not tell.

    Raises:
        CheckpointError: If a tensor is missing or of a wrong shape, heads or image size cannot be told, sizes
            contradict each other, or the hints contradict the folder.
    """
    try:
        if source.layout in (MAE_HF, VIT_MAE):
            made = _from_native(source.fields) if source.layout == MAE_HF else _from_vit_mae(source.fields)
            for field in fields(hints):
                _check_hint(field.name, getattr(hints, field.name), getattr(made, field.name))
            return made
        return MAEConfig(**_sizes_and_heads(source, hints), **_head(source), **_training_fields(source.args))
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(f"the configuration does not fit: {error}") from error
    except Exception as error:  # a folder's config or training arguments may hold anything
        raise CheckpointError(f"its configuration is wrong: {first_line(error)}") from error


def _from_native(config: Mapping[str, Any]) -> MAEConfig:
    """Only the model's own fields: the rest may name files of code, or how one machine runs it."""
    known = {"model_type", "out_features", "out_indices", *(field.name for field in fields(MAEConfig))}
    return MAEConfig.from_dict({name: value for name, value in config.items() if name in known})


def _from_vit_mae(fields: Mapping[str, Any]) -> MAEConfig:
    made = config_from_vit_mae(fields)
    warn_about_epsilon(made)
    return made


def _check_hint(name: str, hint: Any, found: Any) -> None:
    if hint is not None and hint != (to_pair(found) if isinstance(hint, tuple) else found):
        raise CheckpointError(f"its config.json says that {name} is {found}: leave out the option")


def _sizes_and_heads(source: Source, hints: Hints) -> dict[str, Any]:
    sizes = read_sizes(source, hints)
    if unknown := [f"--{name.replace('_', '-')} N" for name, value in sizes.items() if value is None]:
        raise CheckpointError(
            "the number of heads is not in the weights, and no released model has these widths: "
            f"give it with {' '.join(unknown)}"
        )
    return sizes


def _head(source: Source) -> dict[str, Any]:
    """Fields that tell a classifier's head; a head of 1000 classes is taken to be of ImageNet-1k."""
    if source.kind not in CLASSIFIERS:
        return {}
    key = "head.1.weight" if source.kind == LINPROBE else "head.weight"
    num_labels = _shape(source.state_dict, key, 2)[0]
    names = imagenet_labels() if num_labels == NUM_IMAGENET_CLASSES else {}
    labels = {"id2label": names, "label2id": {name: index for index, name in names.items()}}
    return {
        "pooling": "mean" if "fc_norm.weight" in source.state_dict else "cls",
        "linear_probe": source.kind == LINPROBE,
        **(labels if names else {"num_labels": num_labels}),
    }


def _training_fields(args: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of the config that training arguments tell."""
    told = {"mask_ratio": args.get("mask_ratio"), "drop_path_rate": args.get("drop_path")}
    return {name: value for name, value in told.items() if isinstance(value, float)}


def preset_of(sizes: Mapping[str, Any]) -> str | None:
    """Name of the preset whose encoder has these sizes (fields of the config), or None."""
    same = (name for name, preset in PRESETS.items() if preset.items() <= sizes.items())
    return next(same, None)


def released_preset(source: Source, sizes: Mapping[str, Any]) -> str | None:
    """Name of the preset if the weights have the sizes of released files in all else as well, or None."""
    common = ["image_size", "num_channels", *([name for name in sizes if name.startswith("decoder_")])]
    default = MAEConfig()
    same = all(sizes[name] == getattr(default, name) for name in common)
    classes = [len(value) for key, value in source.state_dict.items() if key in ("head.weight", "head.1.weight")]
    return preset_of(sizes) if same and classes in ([], [NUM_IMAGENET_CLASSES]) else None


def usual_heads(config: MAEConfig) -> tuple[int | None, int | None]:
    """Heads of encoder and decoder that are taken for these widths when nothing tells them."""
    return _HEADS.get(config.hidden_size), _DECODER_HEADS.get(config.decoder_hidden_size)


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
        if min(given) <= 0 or height % patch_size or width % patch_size:
            raise CheckpointError(
                f"the image size must be positive and divisible by the patch size {patch_size}, got {given}"
            )
        if (height // patch_size) * (width // patch_size) != num_patches:
            raise CheckpointError(f"an image of {height}x{width} does not have the checkpoint's {num_patches} patches")
        return given if height != width else height
    try:
        return square_grid(num_patches)[0] * patch_size
    except ValueError as error:
        raise CheckpointError(f"{error}, with --image-size HEIGHT WIDTH") from error
