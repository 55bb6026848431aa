"""ViTMAE, transformers' own masked autoencoder: its configuration, and reading its weights."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import ViTMAEConfig

from .checkpoint import CheckpointError, fetch_folder, read_config, read_folder
from .configuration_mae import MAEConfig
from .key_maps import as_on_the_hub, native_to_vit_mae_names, vit_mae_to_native
from .patch_embed import to_pair

_FIELDS = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "initializer_range",
    "layer_norm_eps",
    "image_size",
    "patch_size",
    "num_channels",
    "qkv_bias",
    "decoder_hidden_size",
    "decoder_num_hidden_layers",
    "decoder_num_attention_heads",
    "decoder_intermediate_size",
    "mask_ratio",
    "norm_pix_loss",
)


def config_from_vit_mae(fields: Mapping[str, Any]) -> MAEConfig:
    """Make the configuration of a ViTMAE's weights; what the fields lack has ViTMAE's default.

    Args:
        fields: Content of its `config.json`.

    Returns:
        The configuration, with the epsilon as it is: see `warn_about_epsilon`.

    Raises:
        ValueError: If it is of another model, or a value is wrong.
    """
    if (found := fields.get("model_type")) != ViTMAEConfig.model_type:
        raise ValueError(f"this is the configuration of a {found!r} model, not of a {ViTMAEConfig.model_type!r} one")
    defaults = ViTMAEConfig()
    return MAEConfig(**{name: fields.get(name, getattr(defaults, name)) for name in _FIELDS})


def warn_about_epsilon(config: MAEConfig) -> None:
    """Warn if the epsilon is ViTMAE's default, with which official weights do not give the official numbers."""
    if config.layer_norm_eps == ViTMAEConfig().layer_norm_eps:
        warnings.warn(
            f"layer_norm_eps is {config.layer_norm_eps}, ViTMAE's default, and is kept; weights that come from an "
            "official file were trained with 1e-06: set layer_norm_eps to it for the official numbers",
            stacklevel=3,
        )


def config_to_vit_mae(config: MAEConfig) -> ViTMAEConfig:
    """Make ViTMAE's configuration; raises `ValueError` for images that are not square, which it cannot take."""
    height, width = to_pair(config.image_size)
    if height != width:
        raise ValueError(f"ViTMAE takes square images only, and image_size is {config.image_size}")
    types = {name: type(value) for name, value in vars(ViTMAEConfig()).items()}
    fields = {name: getattr(config, name) for name in _FIELDS if name != "image_size"}
    numbers = {name: float(value) for name, value in fields.items() if types[name] is float}  # it takes no int there
    made = ViTMAEConfig(**{**fields, **numbers, "image_size": height})
    made.dtype = config.dtype
    return made


def read_vit_mae(name: str | Path, **hub_options: Any) -> tuple[MAEConfig, dict[str, Tensor]]:
    """Read a folder or Hub repository of a ViTMAE.

    Args:
        name: Folder or Hub id.
        **hub_options: See `fetch_folder`.

    Returns:
        The configuration (see `config_from_vit_mae`), and the weights with native keys.

    Raises:
        CheckpointError: If the config cannot be read, weights are damaged, or keys are not those of a ViTMAE.
        OSError: If there is no such repository.
        ValueError: If the config is of another model or wrong.
    """
    folder = fetch_folder(name, **hub_options)
    config = config_from_vit_mae(read_config(folder))
    weights = vit_mae_to_native(as_on_the_hub(read_folder(folder).state_dict))
    wanted = _native_names(config, any(key.startswith("decoder.") for key in weights))
    for what, keys in (
        ("no ViTMAE has", [key for key in weights if key not in wanted]),
        ("are missing", [key for key in wanted if key not in weights]),
    ):
        if keys:
            raise CheckpointError(f"{folder}: weights that {what} ({len(keys)}): {', '.join(keys[:3])}")
    return config, weights


def _native_names(config: MAEConfig, with_decoder: bool) -> list[str]:
    names = native_to_vit_mae_names(config.num_hidden_layers, config.decoder_num_hidden_layers)
    return [
        name
        for name in names
        if (with_decoder or not name.startswith("decoder.")) and (config.qkv_bias or not name.endswith("qkv.bias"))
    ]
