"""ViTMAE, the masked autoencoder of transformers: its configuration, and loading its weights."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import ViTMAEConfig

from .checkpoint import CheckpointError, fetch_folder, read_config, read_folder
from .configuration_mae import MAEConfig
from .key_maps import as_on_the_hub, native_to_vit_mae_names, vit_mae_to_native
from .modeling_mae import MAEForPreTraining
from .patch_embed import to_pair
from .pretrained import HUB_OPTIONS, MAEPreTrainedModel, check_image_size

_FIELDS = [name for name in MAEConfig.__annotations__ if name in ViTMAEConfig.__annotations__]


def load_vit_mae(name: str | Path, model_class: type[MAEPreTrainedModel] = MAEForPreTraining, **kwargs: Any) -> Any:
    """Load the weights of transformers' ViTMAE, such as "facebook/vit-mae-base".

    Args:
        name: Folder or Hub id; safetensors or `pytorch_model.bin`, sharded or not.
        model_class: Class of the model to return, such as `MAEModel` or `MAEForImageClassification`.
        **kwargs: As for `from_pretrained`: fields of the config (`layer_norm_eps=1e-6`: files on the Hub specify 1e-12,
            and this warns about it), `dtype`, `device_map`, `revision`, `token`, `output_loading_info`, ...

    Returns:
        The model, in eval mode; what the weights lack (a decoder, a head) is randomly initialised, as by
        `from_pretrained`.

    Warns:
        UserWarning: If the epsilon is ViTMAE's default, or if `model_class` has a decoder and the weights have none.

    Raises:
        CheckpointError: If config or weights are damaged, or the keys are not those of a ViTMAE.
        OSError: If there is no such repository.
        RuntimeError: If the shapes of the weights contradict the config.
        ValueError: If the config is invalid or belongs to another model, or an argument is not supported.
    """
    for argument in ("config", "state_dict", "subfolder", "use_safetensors", "variant"):
        if argument in kwargs:
            raise ValueError(f"load_vit_mae does not support {argument}")
    hub_options = {option: kwargs.pop(option) for option in HUB_OPTIONS if option in kwargs}
    stored, weights = _read(name, **hub_options)
    config, kwargs = MAEConfig.from_dict(stored.to_diff_dict(), return_unused_kwargs=True, **kwargs)
    check_image_size(config, {"image_size": stored.image_size})
    warn_about_epsilon(config)
    return model_class.from_pretrained(None, config=config, state_dict=weights, **kwargs)


def config_from_vit_mae(fields: Mapping[str, Any]) -> MAEConfig:
    """Make the configuration for the weights of a ViTMAE; missing fields have ViTMAE's defaults.

    Args:
        fields: Content of its `config.json`.

    Returns:
        The configuration, with the epsilon unchanged: see `warn_about_epsilon`.

    Raises:
        ValueError: If it belongs to another model, or a value is invalid.
    """
    if (found := fields.get("model_type")) != ViTMAEConfig.model_type:
        raise ValueError(f"this is the config of a {found!r} model, not of a {ViTMAEConfig.model_type!r} model")
    defaults = ViTMAEConfig()
    return MAEConfig(**{name: fields.get(name, getattr(defaults, name)) for name in _FIELDS})


def warn_about_epsilon(config: MAEConfig) -> MAEConfig:
    """Return `config`; warn if its epsilon is ViTMAE's default, with which official weights give other numbers."""
    if config.layer_norm_eps == ViTMAEConfig().layer_norm_eps:
        warnings.warn(
            f"layer_norm_eps is {config.layer_norm_eps}, ViTMAE's default, and is kept; official weights were trained "
            "with 1e-06: if these come from an official file, set layer_norm_eps=1e-6 for the official numbers",
            stacklevel=3,
        )
    return config


def config_to_vit_mae(config: MAEConfig) -> ViTMAEConfig:
    """Make the configuration of a ViTMAE; raises `ValueError` for non-square images, which it does not support."""
    height, width = to_pair(config.image_size)
    if height != width:
        raise ValueError(f"ViTMAE supports square images only, and image_size is {config.image_size}")
    types = {name: type(value) for name, value in vars(ViTMAEConfig()).items()}
    fields = {name: getattr(config, name) for name in _FIELDS if name != "image_size"}
    floats = {name: float(value) for name, value in fields.items() if types[name] is float}  # it rejects an int there
    made = ViTMAEConfig(**{**fields, **floats, "image_size": height})
    made.dtype = config.dtype
    return made


def _read(name: str | Path, **hub_options: Any) -> tuple[MAEConfig, dict[str, Tensor]]:
    """Read the configuration, and the weights under native names, of a folder or Hub repository."""
    folder = fetch_folder(name, **hub_options)
    config = config_from_vit_mae(read_config(folder))
    weights = vit_mae_to_native(as_on_the_hub(read_folder(folder).state_dict))
    names = native_to_vit_mae_names(config.num_hidden_layers, config.decoder_num_hidden_layers)
    absent = () if any(key.startswith("decoder.") for key in weights) else ("decoder.",)
    expected = {
        key for key in names if not key.startswith(absent) and (config.qkv_bias or not key.endswith("qkv.bias"))
    }
    for what, keys in (("unexpected", weights.keys() - expected), ("missing", expected - weights.keys())):
        if keys:
            first = ", ".join(sorted(keys)[:3])
            raise CheckpointError(f"{folder} is not a complete ViTMAE: {what} keys ({len(keys)}): {first}")
    return config, weights
