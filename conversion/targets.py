"""Writing each layout: the files of a folder, or the one file that the official code reads."""

import json
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from safetensors import SafetensorError
from torch import Tensor
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from mae_hf.checkpoint import CheckpointError, first_line, read_checkpoint, read_folder
from mae_hf.configuration_mae import PRESETS, MAEConfig
from mae_hf.image_processor import image_processor
from mae_hf.patch_embed import to_pair
from mae_hf.remote_code import AUTO_MAP
from mae_hf.vit_mae import config_to_vit_mae

from .config import NUM_IMAGENET_CLASSES, preset_of, usual_heads
from .kinds import CLASSIFIERS, DESCRIPTIONS, ENCODER, MODEL_CLASSES, PRETRAINING
from .labels import imagenet_labels
from .layouts import LAYOUTS, MAE_HF, OFFICIAL, TIMM, VIT_MAE

_TRAINING = ("hidden_dropout_prob", "attention_probs_dropout_prob", "drop_path_rate", "initializer_range", "mask_ratio")
_NOT_KEPT = {  # fields that a layout does not hold: reading it gives their defaults
    OFFICIAL: ("layer_norm_eps", "hidden_act", "norm_pix_loss", *_TRAINING),
    VIT_MAE: ("pooling", "drop_path_rate"),
    TIMM: ("layer_norm_eps", "hidden_act", "pooling", *_TRAINING),
}


def check_target(layout: str, kind: str) -> None:
    """Raise `CheckpointError` if a layout has no place for a kind of weights."""
    if layout not in LAYOUTS:
        raise CheckpointError(f"unknown layout {layout!r}: known are {', '.join(LAYOUTS)}")
    if kind in CLASSIFIERS and layout in (VIT_MAE, TIMM):
        model = "ViTMAE has no classifier" if layout == VIT_MAE else "timm's .mae layout holds an encoder without head"
        raise CheckpointError(f"a {DESCRIPTIONS[kind]} does not go into the {layout} layout: {model}")


def kind_written(layout: str, kind: str) -> str:
    """Kind of what is written for a kind of source: timm's layout holds an encoder only."""
    return ENCODER if layout == TIMM else kind


def not_kept(layout: str, kind: str, config: MAEConfig) -> list[str]:
    """What of these weights and their config a layout has no place for, one line each."""
    lines = []
    if kind_written(layout, kind) != kind:
        lines.append("the decoder is left out: timm's layout holds an encoder")
    default = MAEConfig()
    fields = [*_NOT_KEPT.get(layout, ()), *(["pooling"] if layout == OFFICIAL and kind not in CLASSIFIERS else [])]
    for name in fields:
        if (value := getattr(config, name)) != (taken := getattr(default, name)):
            lines.append(f"the {layout} layout has no place for {name}={value}: it is read with {taken}")
    return [*lines, *(_not_in_a_file(kind, config) if layout == OFFICIAL else [])]


def _not_in_a_file(kind: str, config: MAEConfig) -> list[str]:
    """What an official file does not tell, and reading it would take wrongly without the option."""
    lines, (height, width) = [], to_pair(config.image_size)
    if height != width:
        lines.append(f"the official layout has no place for image_size: read it with --image-size {height} {width}")
    names = ("num_attention_heads", "decoder_num_attention_heads")[: 2 if kind == PRETRAINING else 1]
    for name, taken in zip(names, usual_heads(config), strict=False):
        if taken not in (None, heads := getattr(config, name)):
            option = f"--{name.replace('_', '-')} {heads}"
            lines.append(
                f"the official layout has no place for {name}={heads}: read it with {option}, or {taken} is taken"
            )
    if kind in CLASSIFIERS and not _has_plain_labels(config):
        lines.append("the official layout has no place for the names of the classes")
    return lines


def _has_plain_labels(config: MAEConfig) -> bool:
    """Whether the names are those that reading a head of this size gives."""
    if config.num_labels == NUM_IMAGENET_CLASSES:
        return config.id2label == imagenet_labels()
    return config.id2label == MAEConfig(num_labels=config.num_labels).id2label  # type: ignore[call-arg]


def class_name(layout: str, kind: str) -> str:
    """Name of the class that loads a folder: of this package, or of transformers for a ViTMAE."""
    if layout == VIT_MAE:
        return "ViTMAEModel" if kind == ENCODER else "ViTMAEForPreTraining"
    return MODEL_CLASSES[kind_written(layout, kind)].__name__


def write_weights(layout: str, place: Path, weights: Mapping[str, Tensor], max_shard_size: str) -> None:
    """Write weights under the names of a layout.

    Args:
        layout: One of the four.
        place: Empty folder, or for "official" the path of the file.
        weights: In the order to write.
        max_shard_size: Largest size of one safetensors file.

    Raises:
        CheckpointError: If they cannot be written; the disk may be full.
    """
    try:
        if layout == OFFICIAL:
            with place.open("wb") as file:  # by its path, the name of the place would get into the file
                torch.save({"model": OrderedDict(weights)}, file)
            return
        save_torch_state_dict(dict(weights), place, max_shard_size=max_shard_size)
        for shard in place.glob("*.safetensors"):  # written readable for their owner alone
            shard.chmod(place.stat().st_mode & 0o666)
    except (SafetensorError, OSError, RuntimeError) as error:
        raise CheckpointError(f"the weights cannot be written: {error}") from error


def write_config(layout: str, place: Path, kind: str, config: MAEConfig, license: str) -> None:
    """Write `config.json`, and for transformers the image processor of a model with three channels.

    Raises:
        ValueError: If the layout cannot have such a model.
    """
    if layout == TIMM:
        (place / "config.json").write_text(json.dumps(_timm_config(config, license), indent=1) + "\n")
        return
    made = config_to_vit_mae(config) if layout == VIT_MAE else config
    made.architectures = [class_name(layout, kind)]
    try:
        made.save_pretrained(place)
    except OSError:
        raise
    except Exception as error:  # fields of transformers that nothing here looks at
        raise CheckpointError(f"the configuration cannot be written: {first_line(error)}") from error
    if config.num_channels == 3:
        image_processor(config).save_pretrained(place)


def auto_class(kind: str) -> str:
    """Name of the Auto class of transformers that loads a folder with code as what it is."""
    return next(name for name, reference in AUTO_MAP.items() if reference.endswith(f".{class_name(MAE_HF, kind)}"))


def read_back(layout: str, place: Path) -> dict[str, Tensor]:
    """Read what was written."""
    return (read_checkpoint(place) if layout == OFFICIAL else read_folder(place)).state_dict


def _timm_config(config: MAEConfig, license: str) -> dict[str, Any]:
    """As timm 1.0.31 writes it for its `.mae` models; other sizes are arguments of vit_base_patch16_224."""
    preset = preset_of(config.to_dict()) or "base"
    sizes, size = PRESETS[preset], list(to_pair(config.image_size))
    arguments = {"in_chans": config.num_channels, "num_classes": 0, "global_pool": "token", "img_size": size}
    if preset_of(config.to_dict()) is None:
        arguments |= {
            "patch_size": config.patch_size,
            "embed_dim": config.hidden_size,
            "depth": config.num_hidden_layers,
            "num_heads": config.num_attention_heads,
            "mlp_ratio": config.intermediate_size / config.hidden_size,
        }
    if not config.qkv_bias:
        arguments["qkv_bias"] = False
    return {
        "architecture": f"vit_{preset}_patch{sizes['patch_size']}_224",
        "num_classes": 0,
        "num_features": config.hidden_size,
        "global_pool": "token",
        "model_args": arguments,
        "pretrained_cfg": {
            "tag": "mae",
            "custom_load": False,
            "input_size": [config.num_channels, *size],
            "fixed_input_size": True,
            "interpolation": "bicubic",
            "crop_pct": 0.9,
            "crop_mode": "center",
            "mean": list(IMAGENET_DEFAULT_MEAN),
            "std": list(IMAGENET_DEFAULT_STD),
            "num_classes": 0,
            "pool_size": None,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
            "license": license,
        },
    }
