"""The layouts of weights: one object holds all knowledge about each. To add a layout, add it to `LAYOUTS`.

| layout | used by |
|---|---|
| official | `.pth` files of the official repository and of training with it |
| mae_hf | folders of this package |
| vit_mae | folders of transformers' ViTMAE, with the key names of the files on the Hub |
| timm | folders of timm's `.mae` models: an encoder under its official names |
"""

import dataclasses
import json
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from torch import Tensor
from transformers import PretrainedConfig, ViTMAEConfig
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from mae_hf.checkpoint import CheckpointError, first_line, read_checkpoint, read_folder
from mae_hf.configuration_mae import PRESETS, MAEConfig, is_count
from mae_hf.image_processor import image_processor
from mae_hf.key_maps import as_on_the_hub, native_to_official, native_to_vit_mae, official_to_native, vit_mae_to_native
from mae_hf.patch_embed import to_pair
from mae_hf.remote_code import AUTO_MAP
from mae_hf.vit_mae import config_from_vit_mae, config_to_vit_mae, warn_about_epsilon

from .inference import ENCODER, MODEL_CLASSES, PRETRAINING, RELEASED, infer_fields, not_inferred, preset_of

Weights = Mapping[str, Tensor]
Fields = Mapping[str, Any]
Rename = Callable[[Weights], dict[str, Tensor]]

_ANCHORS = ("cls_token", "pos_embed", "patch_embed.proj.weight", "encoder.blocks.0.norm1.weight")  # in every model
_CLASS_NAMES = {kind: model_class.__name__ for kind, model_class in MODEL_CLASSES.items()}
_LOAD = '{0}.from_pretrained("{1}")'
_TRAINING = ("hidden_dropout_prob", "attention_probs_dropout_prob", "drop_path_rate", "initializer_range", "mask_ratio")


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A layout of weights. Native names are those of the whole model: a lone encoder's begin with `mae.` as well."""

    name: str
    class_names: Mapping[str, str]  # class that loads each kind; without "pretraining", the decoder is left out
    to_native: Rename = dict  # to native names; unknown keys are kept
    from_native: Rename = dict  # the inverse
    normalise: Rename = dict  # to the names in the whole model, however the weights were saved
    lone_prefix: str = ""  # prefix that is removed from the names when the encoder alone is saved
    is_config: Callable[[Fields], bool] = lambda fields: False  # whether this is the `config.json` of such a folder
    config_of: Callable[[Fields], MAEConfig] | None = None  # reads `config.json`; None: it is inferred from shapes
    stored: Callable[[Fields], dict[str, Any]] = lambda fields: {}  # what `config.json` specifies besides the shapes
    config_to: Callable[[str, MAEConfig, str], PretrainedConfig | dict[str, Any]] | None = None  # kind, config, licence
    is_file: bool = False  # one file, written by `torch.save`, instead of a folder with safetensors
    has_code: bool = False  # a folder can contain the code of the models
    lost_fields: tuple[str, ...] = ()  # fields of the configuration that it cannot hold: reading gives their defaults
    library_name: str = "transformers"  # as the Hub names the library of such a folder
    limits: tuple[str, ...] = ()  # what the model card says that such a folder cannot do
    loader: tuple[str, str] = ("from mae_hf import {0}", _LOAD)  # import and expression; class and place are filled in

    def quote(self, key: str) -> str:
        """Return the name of a native key in this layout."""
        return next(iter(self.from_native({key: torch.empty(0)})))

    def missing_anchors(self, weights: Weights) -> list[str]:
        """Return the keys of this layout that every model has and these weights lack."""
        return sorted({self.quote(f"mae.{key}") for key in _ANCHORS} - self.normalise(weights).keys())

    def read_fields(self, weights: Weights, fields: Fields, given: Fields) -> dict[str, Any]:
        """Read or infer the fields of the configuration of a model; None for an unknown number of heads.

        Args:
            weights: Under native names.
            fields: Content of the folder's `config.json`, or the training arguments in the file.
            given: `num_attention_heads`, `decoder_num_attention_heads` and `image_size`, as passed by the caller.

        Raises:
            CheckpointError: If a size is missing, invalid or contradictory; the message names keys as in the file.
        """
        try:
            if self.config_of is None:
                training = fields if self.is_file else {}
                return infer_fields(weights, training, _merge(given, self.stored(fields)), self.quote)
            for name in ("num_hidden_layers", "decoder_num_hidden_layers"):  # before names of the blocks are made
                if isinstance(depth := fields.get(name), int) and depth > max(100, len(weights)):
                    raise CheckpointError(f"{name} is {depth}, but there are only {len(weights)} weights")
            config = self.config_of(fields)
            _merge(given, {name: getattr(config, name) for name in given})
            return config.to_dict()
        except CheckpointError:
            raise
        except Exception as error:  # a folder's config or training arguments may hold anything
            raise CheckpointError(f"invalid config: {first_line(error)}") from error

    def kind_written(self, kind: str) -> str:
        """Return the kind of what is written for weights of a kind; raises `CheckpointError` if it cannot hold them."""
        written = ENCODER if kind == PRETRAINING and kind not in self.class_names else kind
        if written not in self.class_names:
            able = " and ".join(layout.name for layout in LAYOUTS.values() if kind in layout.class_names)
            raise CheckpointError(f"the {self.name} layout cannot hold a classifier, the layouts {able} can")
        return written

    def to_write(self, weights: Weights, kind: str) -> dict[str, Tensor]:
        """Select the native weights to store, and rename them to the names that the loading class expects."""
        if kind != ENCODER:
            return self.from_native(weights)
        encoder = {key: value for key, value in weights.items() if not key.startswith("decoder.")}
        return {key.removeprefix(self.lone_prefix): value for key, value in self.from_native(encoder).items()}

    def not_kept(self, kind: str, config: MAEConfig) -> list[str]:
        """Describe what of these weights and their configuration it cannot hold, one line each."""
        lines = ["hold the decoder, which is left out"] if self.kind_written(kind) != kind else []
        default = MAEConfig()
        lost = {x: value for x in self.lost_fields if (value := getattr(config, x)) != getattr(default, x)}
        lines += [f"store {name}={value}, which is read as {getattr(default, name)}" for name, value in lost.items()]
        lines += not_inferred(kind, config) if self.is_file else []
        return [f"the {self.name} layout does not {line}" for line in lines]

    def loading_code(self, kind: str, place: object) -> list[str]:
        """Return the import and the expression that load weights of a kind from a place."""
        return [text.format(self.class_names[kind], place) for text in self.loader]

    def auto_class(self, kind: str) -> str:
        """Return the Auto class of transformers that loads a folder with code."""
        return next(name for name, reference in AUTO_MAP.items() if reference.endswith(f".{self.class_names[kind]}"))

    def write_weights(self, place: Path, weights: Weights, max_shard_size: str) -> None:
        """Write weights under the names of the layout.

        Args:
            place: Empty folder, or the path of the file to write.
            weights: As `to_write` returns them, in the order to write.
            max_shard_size: Largest size of one safetensors file.

        Raises:
            SafetensorError, OSError, RuntimeError: If they cannot be written; the disk may be full.
        """
        if self.is_file:
            with place.open("wb") as file:  # given a path, PyTorch would store its name in the file
                torch.save({"model": OrderedDict(weights)}, file)
            return
        save_torch_state_dict(dict(weights), place, max_shard_size=max_shard_size)
        for shard in place.glob("*.safetensors"):  # written readable for their owner only
            shard.chmod(place.stat().st_mode & 0o666)

    def read_back(self, place: Path) -> dict[str, Tensor]:
        """Read weights that were written."""
        return (read_checkpoint(place) if self.is_file else read_folder(place)).state_dict

    def write_config(self, place: Path, kind: str, config: MAEConfig, license: str) -> None:
        """Write `config.json`, and for transformers the image processor of a model with three channels.

        Raises:
            ValueError: If the layout cannot describe such a model.
        """
        assert self.config_to is not None, f"the {self.name} layout has no config"
        made = self.config_to(kind, config, license)
        if isinstance(made, dict):
            (place / "config.json").write_text(json.dumps(made, indent=1) + "\n")
            return
        made.architectures = [self.class_names[kind]]
        try:
            made.save_pretrained(place)  # with an `auto_map`, also writes the code of the models
        except OSError:
            raise
        except Exception as error:  # fields of transformers that nothing here checks
            raise CheckpointError(f"the config cannot be written: {first_line(error)}") from error
        if config.num_channels == 3:
            image_processor(config).save_pretrained(place)


def _merge(given: Fields, stored: Fields) -> dict[str, Any]:
    """Join what the caller passed and what a config specifies; raises `CheckpointError` if they differ."""
    for name in given.keys() & stored.keys():
        found = to_pair(stored[name]) if name == "image_size" else stored[name]
        if given[name] != found:
            raise CheckpointError(f"its config.json specifies {name}={found}: leave out the option")
    return {**given, **stored}


def _from_native_config(fields: Fields) -> MAEConfig:
    """Take only the fields of the model itself: others may name files of code, or settings of one machine."""
    known = {"model_type", "out_features", "out_indices", *(field.name for field in dataclasses.fields(MAEConfig))}
    config: MAEConfig = MAEConfig.from_dict({name: value for name, value in fields.items() if name in known})
    return config


def _stored_in_timm(fields: Fields) -> dict[str, Any]:
    arguments = fields.get("model_args")
    arguments = arguments if isinstance(arguments, dict) else {}
    heads, size = arguments.get("num_heads"), arguments.get("img_size")
    if heads is not None and not is_count(heads):
        raise CheckpointError(f"its config.json is invalid: num_heads must be a positive int, got {heads!r}")
    stored = {"num_attention_heads": heads, "image_size": None if size is None else to_pair(size)}
    return {name: value for name, value in stored.items() if value is not None}


def _to_timm_config(kind: str, config: MAEConfig, license: str) -> dict[str, Any]:
    """Make the config that timm 1.0.31 writes for its `.mae` models; other sizes are arguments of its base model."""
    preset, size = preset_of(config.to_dict(), RELEASED), list(to_pair(config.image_size))
    arguments = {"in_chans": config.num_channels, "num_classes": 0, "global_pool": "token", "img_size": size}
    if preset is None:
        arguments |= {
            "patch_size": config.patch_size,
            "embed_dim": config.hidden_size,
            "depth": config.num_hidden_layers,
            "num_heads": config.num_attention_heads,
            "mlp_ratio": config.intermediate_size / config.hidden_size,
        }
    if not config.qkv_bias:
        arguments["qkv_bias"] = False
    name = preset or "base"
    return {
        "architecture": f"vit_{name}_patch{PRESETS[name]['patch_size']}_224",
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


OFFICIAL = Layout(
    name="official",
    class_names=_CLASS_NAMES,
    to_native=official_to_native,
    from_native=native_to_official,
    is_file=True,
    lost_fields=("layer_norm_eps", "hidden_act", "norm_pix_loss", *_TRAINING),
    loader=("import torch", 'torch.load("{1}", weights_only=True)["model"]'),
)
NATIVE = Layout(
    name="mae_hf",
    class_names=_CLASS_NAMES,
    normalise=lambda weights: {
        f"mae.{key}" if "encoder.blocks.0.norm1.weight" in weights else key: value for key, value in weights.items()
    },
    lone_prefix="mae.",
    is_config=lambda fields: fields.get("model_type") == MAEConfig.model_type,
    config_of=_from_native_config,
    config_to=lambda kind, config, license: config,
    has_code=True,
)
VIT_MAE = Layout(
    name="vit_mae",
    class_names={PRETRAINING: "ViTMAEForPreTraining", ENCODER: "ViTMAEModel"},
    to_native=vit_mae_to_native,
    from_native=native_to_vit_mae,
    normalise=as_on_the_hub,
    lone_prefix="vit.",
    is_config=lambda fields: fields.get("model_type") == ViTMAEConfig.model_type,
    config_of=lambda fields: warn_about_epsilon(config_from_vit_mae(fields)),
    config_to=lambda kind, config, license: config_to_vit_mae(config),
    lost_fields=("pooling", "drop_path_rate"),
    loader=("from transformers import {0}", _LOAD),
)
TIMM = Layout(
    name="timm",
    class_names={ENCODER: _CLASS_NAMES[ENCODER]},
    to_native=official_to_native,
    from_native=native_to_official,
    is_config=lambda fields: fields.get("model_type") is None and isinstance(fields.get("architecture"), str),
    stored=_stored_in_timm,
    config_to=_to_timm_config,
    library_name="timm",
    limits=("Loading in timm is not tested; keys, shapes and config are those of its `.mae` models.",),
    lost_fields=("layer_norm_eps", "hidden_act", "pooling", *_TRAINING),
    loader=("import timm", 'timm.create_model("local-dir:{1}", pretrained=True)'),
)
LAYOUTS = {layout.name: layout for layout in (OFFICIAL, NATIVE, VIT_MAE, TIMM)}


def recognise_layout(weights: Weights, config: Fields | None = None) -> Layout:
    """Return the layout of a file, or of a folder with this content of `config.json`.

    Raises:
        CheckpointError: If keys or config belong to another model, or to different layouts.
    """
    by_config = next((layout for layout in LAYOUTS.values() if config is not None and layout.is_config(config)), None)
    if config is not None and by_config is None:
        raise CheckpointError(f"its config.json is of no known layout: model_type is {config.get('model_type')!r}")
    missing = {layout.name: layout.missing_anchors(weights) for layout in LAYOUTS.values()}
    fits = [layout for layout in LAYOUTS.values() if not missing[layout.name]]
    if len({layout.quote("mae.pos_embed") for layout in fits}) > 1:  # timm has official names
        raise CheckpointError(f"it contains the keys of several layouts: {', '.join(layout.name for layout in fits)}")
    if by_config in fits:
        return by_config
    by_keys = min(LAYOUTS.values(), key=lambda layout: len(missing[layout.name]))
    if lacking := missing[by_keys.name]:
        first = ", ".join(list(weights)[:3])
        raise CheckpointError(f"weights of another model: no {', '.join(lacking)}; the first keys are {first}")
    if by_config is not None:
        what = f"its config is that of the {by_config.name} layout, its keys are those of the {by_keys.name} layout"
        raise CheckpointError(what)
    if not by_keys.is_file:
        raise CheckpointError(f"its keys are those of the {by_keys.name} layout: pass the folder with its config.json")
    return by_keys
