"""What native weights are, inferred from their keys and shapes: kind, sizes, head, and whether they are complete."""

import functools
import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mae_hf.checkpoint import CheckpointError, first_line
from mae_hf.configuration_mae import PRESETS, MAEConfig
from mae_hf.key_maps import count_blocks
from mae_hf.modeling_mae import MAEForImageClassification, MAEForPreTraining, MAEModel
from mae_hf.patch_embed import square_grid, to_pair
from mae_hf.pretrained import MAEPreTrainedModel

from .releases import RELEASES

PRETRAINING, ENCODER, LINPROBE = "pretraining", "encoder", "linprobe"
CLASSIFIERS = ("finetuned", "finetuned_cls", LINPROBE)
DESCRIPTIONS = {
    PRETRAINING: "pretraining model, encoder and decoder",
    ENCODER: "encoder only, no decoder",
    "finetuned": "classifier with mean pooling",
    "finetuned_cls": "classifier on the class token",
    LINPROBE: "linear probe",
}
MODEL_CLASSES: dict[str, type[MAEPreTrainedModel]] = {
    PRETRAINING: MAEForPreTraining,
    ENCODER: MAEModel,
    **dict.fromkeys(CLASSIFIERS, MAEForImageClassification),
}
NUM_IMAGENET_CLASSES = 1000

RELEASED = tuple(dict.fromkeys(release.preset for release in RELEASES))
_CONFIGS = [MAEConfig.from_preset(name) for name in RELEASED]
RELEASED_HEADS = {  # by width: the shapes of the weights do not determine the number of heads
    "num_attention_heads": {config.hidden_size: config.num_attention_heads for config in _CONFIGS},
    "decoder_num_attention_heads": {c.decoder_hidden_size: c.decoder_num_attention_heads for c in _CONFIGS},
}
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def kind_of(keys: Collection[str]) -> str:
    """Infer the kind of weights from their native keys."""
    if any(key.startswith("head.") for key in keys):
        if "head.0.running_mean" in keys:
            return LINPROBE
        return "finetuned" if any(key.startswith("fc_norm.") for key in keys) else "finetuned_cls"
    return PRETRAINING if any(key.startswith("decoder.") for key in keys) else ENCODER


def count_parameters(weights: Mapping[str, Tensor]) -> int:
    """Count the parameters in weights of any layout, without the running statistics of a linear probe."""
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    return sum(value.numel() for key, value in weights.items() if not key.endswith(statistics))


def infer_fields(
    weights: Mapping[str, Tensor], training: Mapping[str, Any], given: Mapping[str, Any], quote: Callable[[str], str]
) -> dict[str, Any]:
    """Infer the configuration of a model from the shapes of its weights.

    Args:
        weights: Under native names.
        training: Training arguments; `mask_ratio` and `drop_path` are read.
        given: What shapes do not determine, where known: `num_attention_heads`, `decoder_num_attention_heads`,
            `image_size` as (height, width). Heads of a released width need not be given.
        quote: Returns the name in the file for a native key, for messages.

    Returns:
        Fields of the configuration; None for an unknown number of heads.

    Raises:
        CheckpointError: If a tensor is missing or has a wrong shape, or the image size cannot be inferred.
    """
    shape = functools.partial(_shape, weights, quote)
    _, channels, patch_size, _ = shape("mae.patch_embed.proj.weight", 4)
    sizes: dict[str, Any] = {
        "image_size": _image_size(shape("mae.pos_embed", 3)[1] - 1, patch_size, given.get("image_size")),
        "patch_size": patch_size,
        "num_channels": channels,
        "qkv_bias": "mae.encoder.blocks.0.attn.qkv.bias" in weights,
    }
    halves = [("", "mae.patch_embed.proj.weight", 4, "mae.encoder.blocks")]
    if kind_of(weights) == PRETRAINING:
        halves.append(("decoder_", "decoder.embed.weight", 2, "decoder.blocks"))
    for half, embed, ndim, blocks in halves:
        width, heads = shape(embed, ndim)[0], f"{half}num_attention_heads"
        sizes |= {
            f"{half}hidden_size": width,
            f"{half}num_hidden_layers": count_blocks(weights, f"{blocks}."),
            heads: given[heads] if heads in given else RELEASED_HEADS[heads].get(width),
            f"{half}intermediate_size": shape(f"{blocks}.0.mlp.fc1.weight", 2)[0],
        }
    specified = {"mask_ratio": training.get("mask_ratio"), "drop_path_rate": training.get("drop_path")}
    return {
        **sizes,
        **{name: value for name, value in specified.items() if isinstance(value, float)},
        **_head_fields(weights, quote),
    }


def _shape(weights: Mapping[str, Tensor], quote: Callable[[str], str], key: str, ndim: int) -> tuple[int, ...]:
    if key not in weights:
        raise CheckpointError(f"missing key: {quote(key)}")
    found = tuple(weights[key].shape)
    if len(found) != ndim or 0 in found:
        raise CheckpointError(f"{quote(key)} must have {ndim} dimensions, none of size 0, got the shape {found}")
    return found


def _image_size(num_patches: int, patch_size: int, given: tuple[int, int] | None) -> int | tuple[int, int]:
    if given is not None:
        height, width = given
        if min(given) <= 0 or height % patch_size or width % patch_size:
            raise CheckpointError(f"image_size must be positive and divisible by patch size {patch_size}, got {given}")
        if (height // patch_size) * (width // patch_size) != num_patches:
            raise CheckpointError(f"an image of {height}x{width} does not have the checkpoint's {num_patches} patches")
        return given if height != width else height
    try:
        return square_grid(num_patches)[0] * patch_size
    except ValueError as error:
        raise CheckpointError(f"{error}, with --image-size HEIGHT WIDTH") from error


def _head_fields(weights: Mapping[str, Tensor], quote: Callable[[str], str]) -> dict[str, Any]:
    kind = kind_of(weights)
    if kind not in CLASSIFIERS:
        return {}
    names = labels_of(_shape(weights, quote, "head.1.weight" if kind == LINPROBE else "head.weight", 2)[0])
    return {
        "pooling": "mean" if "fc_norm.weight" in weights else "cls",
        "linear_probe": kind == LINPROBE,
        "id2label": names,
        "label2id": {name: index for index, name in names.items()},
    }


def not_inferred(kind: str, config: MAEConfig) -> list[str]:
    """Describe what weights alone do not specify, and would be inferred wrongly without an option, one line each."""
    lines = []
    if kind not in CLASSIFIERS and config.pooling != MAEConfig().pooling:
        lines.append(f"store pooling={config.pooling}, which is read as {MAEConfig().pooling}")
    height, width = to_pair(config.image_size)
    if height != width:
        lines.append(f"store image_size: read it with --image-size {height} {width}")
    for name, heads in RELEASED_HEADS.items():
        value = getattr(config, name)
        inferred = heads.get(getattr(config, name.replace("num_attention_heads", "hidden_size")))
        if inferred not in (None, value) and (kind == PRETRAINING or not name.startswith("decoder_")):
            option = f"--{name.replace('_', '-')} {value}"
            lines.append(f"store {name}={value}: read it with {option}, or {inferred} is inferred")
    if kind in CLASSIFIERS and config.id2label != labels_of(config.num_labels or 0):
        lines.append("store the names of the classes")
    return lines


def labels_of(num_labels: int) -> dict[int, str]:
    """Return the names given to the classes of a head without names; 1000 classes are taken to be ImageNet-1k."""
    if num_labels != NUM_IMAGENET_CLASSES:
        return dict(MAEConfig(num_labels=num_labels).id2label)  # type: ignore[call-arg,arg-type]
    text = Path(__file__).with_name("imagenet_labels.json").read_text(encoding="utf-8")  # from timm (Apache-2.0)
    return {int(index): label for index, label in json.loads(text).items()}


def preset_of(sizes: Mapping[str, Any], names: Collection[str] = tuple(PRESETS)) -> str | None:
    """Return the name, one of `names`, of the preset whose encoder has these sizes (fields of the config), or None."""
    for name in names:
        if all(sizes[field] == value for field, value in PRESETS[name].items() if not field.startswith("decoder_")):
            return name
    return None


def released_preset(sizes: Mapping[str, Any], weights: Mapping[str, Tensor]) -> str | None:
    """Return the preset if the weights agree with it in everything that released files have in common, or None.

    Args:
        sizes: Fields of the config.
        weights: Under native names.
    """
    default = MAEConfig()
    common = ["image_size", "num_channels", *(name for name in sizes if name.startswith("decoder_"))]
    same = all(sizes[name] == getattr(default, name) for name in common)
    classes = [len(value) for key, value in weights.items() if key in ("head.weight", "head.1.weight")]
    return preset_of(sizes, RELEASED) if same and classes in ([], [NUM_IMAGENET_CLASSES]) else None


def check_complete(
    weights: Mapping[str, Tensor], config: MAEConfig, in_file: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
) -> None:
    """Check that weights have exactly the keys and shapes of the model of a config.

    Args:
        weights: Under native names.
        config: Of the model.
        in_file: Renames native weights as in the file, for messages.

    Raises:
        CheckpointError: Naming the keys in the file that are missing, unexpected, or of a wrong dtype or shape.
    """
    kind = kind_of(weights)
    try:
        with torch.device("meta"):
            native = MODEL_CLASSES[kind](config).state_dict()
    except Exception as error:  # sizes beyond those of a tensor
        raise CheckpointError(f"no model can be built from the config: {first_line(error)}") from error
    native = {f"mae.{key}" if kind == ENCODER else key: value for key, value in native.items()}
    expected, found = in_file(native), in_file(weights)
    both = [key for key in expected if key in found]
    problems = {
        "missing keys": [key for key in expected if key not in found],
        "unexpected keys": [key for key in found if key not in expected],
        "unsupported dtypes": [
            f"{key} {found[key].dtype}"
            for key in both
            if found[key].dtype not in (_FLOATS if expected[key].is_floating_point() else (expected[key].dtype,))
        ],
        "contradictory shapes": [
            f"{key} {tuple(found[key].shape)}, expected {tuple(expected[key].shape)}"
            for key in both
            if found[key].shape != expected[key].shape
        ],
    }
    if not config.apply_layernorm and problems["missing keys"] == [key for key in expected if ".encoder.norm." in key]:
        raise CheckpointError("without apply_layernorm a backbone has no final norm, so it is not a complete encoder")
    for what, keys in problems.items():
        if keys:
            raise CheckpointError(f"{what} ({len(keys)}): {', '.join(keys[:4])}")
    if apart := sorted(weights.keys() - native.keys()):  # parts that could not be fused
        raise CheckpointError(f"query, key and value differ in dtype ({len(apart)}): {', '.join(apart[:4])}")
