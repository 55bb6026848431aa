"""Configuration of masked autoencoders, and the three sizes of the paper (He et al. 2021, table 3 and appendix A.1)."""

import dataclasses
import difflib
from collections.abc import Iterable
from os import PathLike
from typing import Any

from transformers import PretrainedConfig
from transformers.activations import ACT2FN
from transformers.backbone_utils import BackboneConfigMixin

from .masking import DEFAULT_MASK_RATIO
from .patch_embed import grid_of
from .remote_code import save_code

# Only what differs; the decoder is the same for all: width 512, 8 blocks, 16 heads. Source: mae_vit_* in models_mae.py.
PRESETS: dict[str, dict[str, int]] = {
    "base": {
        "patch_size": 16,
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
    },
    "large": {
        "patch_size": 16,
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
    },
    "huge": {
        "patch_size": 14,
        "hidden_size": 1280,
        "num_hidden_layers": 32,
        "num_attention_heads": 16,
        "intermediate_size": 5120,
    },
}

_COUNTS = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "patch_size",
    "num_channels",
    "decoder_hidden_size",
    "decoder_num_hidden_layers",
    "decoder_num_attention_heads",
    "decoder_intermediate_size",
)
_SHARES = ("hidden_dropout_prob", "attention_probs_dropout_prob", "drop_path_rate", "mask_ratio")
_SWITCHES = ("qkv_bias", "norm_pix_loss", "linear_probe", "apply_layernorm")
_POOLINGS = ("mean", "cls")
_STAGES = ("out_features", "out_indices")


def unknown_name(kind: str, name: str, known: Iterable[str]) -> ValueError:
    """Make the error for a name that is not one of those known; near ones come first in its message."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names)
    hint = f"did you mean {', '.join(map(repr, near))}?" if near else f"known: {', '.join(names)}"
    return ValueError(f"unknown {kind} {name!r}; {hint}")


class MAEConfig(BackboneConfigMixin, PretrainedConfig):
    """Everything that defines a masked autoencoder; the defaults are those of ViT-B/16.

    The names are transformers'; the paper's (`embed_dim`, `depth`, `num_heads`, `img_size`, `in_chans`,
    `decoder_embed_dim`, `decoder_depth`, `decoder_num_heads`) work as well, and `mlp_ratio` sets both MLP widths.

    Args:
        hidden_size: Width of the encoder, divisible by 4 and by `num_attention_heads`.
        num_hidden_layers: Blocks of the encoder.
        num_attention_heads: Heads of the encoder.
        intermediate_size: Width inside the MLPs of the encoder.
        hidden_act: Activation of the MLPs; "gelu" is the exact one.
        hidden_dropout_prob: Dropout on the output of attention and MLP, in [0, 1).
        attention_probs_dropout_prob: Dropout on the attention weights, in [0, 1).
        drop_path_rate: Stochastic depth of the last encoder block, in [0, 1).
        initializer_range: Deviation of fresh class and mask tokens; 0.02 officially.
        layer_norm_eps: Epsilon of every layer norm; 1e-6 officially (mae_vit_* in models_mae.py).
        image_size: Side or (height, width) in pixels, divisible by `patch_size`.
        patch_size: Side of a patch in pixels.
        num_channels: Channels of an image.
        qkv_bias: Give the fused query, key, value projections a bias.
        decoder_hidden_size: Width of the decoder, divisible by 4 and by `decoder_num_attention_heads`.
        decoder_num_hidden_layers: Blocks of the decoder.
        decoder_num_attention_heads: Heads of the decoder.
        decoder_intermediate_size: Width inside the MLPs of the decoder.
        mask_ratio: Share of patches that `MAEForPreTraining` hides, in [0, 1).
        norm_pix_loss: Predict patches normalised by their own mean and deviation (section 3, table 1d).
        pooling: What `MAEModel` gives as `pooler_output` and a classifier reads: "mean" of the patch tokens, or the
            class token, "cls".
        linear_probe: Give `MAEForImageClassification` the head of the paper's linear probe, and freeze all else.
        apply_layernorm: Give the feature maps of `MAEBackbone` the encoder's final norm, whatever block they are of.
        out_features: Names of the feature maps of `MAEBackbone`, in order: "stem" for the input of the first block,
            "stage1" to "stageN" for the outputs of the blocks; the last one by default.
        out_indices: The same by number, 0 for "stem"; give the one or the other.

    Raises:
        ValueError: If a value is of a wrong type or out of range; the message names the field and the value.
    """

    model_type = "mae"
    attribute_map = {
        "embed_dim": "hidden_size",
        "depth": "num_hidden_layers",
        "num_heads": "num_attention_heads",
        "img_size": "image_size",
        "in_chans": "num_channels",
        "decoder_embed_dim": "decoder_hidden_size",
        "decoder_depth": "decoder_num_hidden_layers",
        "decoder_num_heads": "decoder_num_attention_heads",
    }

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.0
    attention_probs_dropout_prob: float = 0.0
    drop_path_rate: float = 0.0
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-6
    image_size: int | tuple[int, int] = 224
    patch_size: int = 16
    num_channels: int = 3
    qkv_bias: bool = True
    decoder_hidden_size: int = 512
    decoder_num_hidden_layers: int = 8
    decoder_num_attention_heads: int = 16
    decoder_intermediate_size: int = 2048
    mask_ratio: float = DEFAULT_MASK_RATIO
    norm_pix_loss: bool = False
    pooling: str = "mean"
    linear_probe: bool = False
    apply_layernorm: bool = True
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None
    _has_choice: bool = False  # of feature maps

    def __post_init__(
        self,
        mlp_ratio: float | None = None,
        out_features: list[str] | None = None,
        out_indices: list[int] | None = None,
        **kwargs: Any,
    ) -> None:
        """Set what is no field of this class, then check all fields."""
        super().__post_init__(**kwargs)
        self.check_fields()
        self.set_output_features_output_indices(out_features, out_indices)
        if mlp_ratio is not None:
            if not (_is_number(mlp_ratio) and 0 < mlp_ratio < float("inf")):
                raise ValueError(f"mlp_ratio must be a positive number, got {mlp_ratio!r}")
            self.intermediate_size = int(self.hidden_size * mlp_ratio)
            self.decoder_intermediate_size = int(self.decoder_hidden_size * mlp_ratio)
            self.check_fields()

    @classmethod
    def from_preset(cls, name: str, **overrides: Any) -> "MAEConfig":
        """Make the configuration of a size of the paper.

        Args:
            name: "base" (ViT-B/16), "large" (ViT-L/16) or "huge" (ViT-H/14).
            **overrides: Fields to change, under either of their names. Another `hidden_size` leaves the widths inside
                the MLPs as they are; `mlp_ratio` changes both of them.

        Raises:
            ValueError: If the name or a field is unknown (near ones are listed), a field is given twice, or a value is
                wrong.
        """
        if name not in PRESETS:
            raise unknown_name("preset", name, PRESETS)
        fields = {field.name for field in dataclasses.fields(cls) if not field.name.startswith("_")}
        known = fields | set(cls.attribute_map) | {"mlp_ratio", "attn_implementation", "num_labels", *_STAGES}
        for field in overrides:
            if field not in known:
                raise unknown_name("field", field, known)
        renamed = {cls.attribute_map.get(field, field): value for field, value in overrides.items()}
        if len(renamed) < len(overrides):
            raise ValueError(f"a field is given under both of its names: {', '.join(overrides)}")
        if "mlp_ratio" in renamed and renamed.keys() & {"intermediate_size", "decoder_intermediate_size"}:
            raise ValueError(
                "mlp_ratio sets intermediate_size and decoder_intermediate_size: give the one or the others"
            )
        return cls(**{**PRESETS[name], **renamed})

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Make a configuration from its dictionary; `kwargs` are set afterwards, so all fields are checked again."""
        found = config_dict.get("model_type", cls.model_type)
        if found not in (cls.model_type, MAEConfig.model_type):
            raise ValueError(f"this is the configuration of a {found!r} model, not of a {cls.model_type!r} one")
        chosen = kwargs if kwargs.keys() & set(_STAGES) else config_dict
        stages = [chosen.get(name) for name in _STAGES]
        config_dict, kwargs = (
            {name: value for name, value in fields.items() if name not in _STAGES} for fields in (config_dict, kwargs)
        )
        made = super().from_dict(config_dict, **kwargs)
        config = made[0] if isinstance(made, tuple) else made
        config.check_fields()
        config.set_output_features_output_indices(*stages)  # now that the depth is known
        return made

    def save_pretrained(self, save_directory: str | PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Save the configuration; with an `auto_map`, the code of the models too (`save_code`)."""
        save_code(self, save_directory)
        super().save_pretrained(save_directory, *args, **kwargs)

    def set_output_features_output_indices(self, out_features: list[str] | None, out_indices: list[int] | None) -> None:
        """Choose the feature maps of a backbone, by name or number; raises `ValueError` if there are no such."""
        for name, value, kind in (("out_features", out_features, str), ("out_indices", out_indices, int)):
            if value is not None and not (isinstance(value, list | tuple) and {type(item) for item in value} <= {kind}):
                raise ValueError(f"{name} must be a list of {kind.__name__}, got {value!r}")
        self._has_choice = out_features is not None or out_indices is not None
        out_features = None if out_features is None else list(out_features)
        super().set_output_features_output_indices(out_features, out_indices)

    def to_dict(self) -> dict[str, Any]:
        """Make the dictionary that is saved; without the feature maps of a backbone unless they were chosen."""
        made = super().to_dict()
        for name in ("_has_choice", *(() if self._has_choice else _STAGES)):
            made.pop(name, None)
        return made

    @property
    def stage_names(self) -> list[str]:
        """Names of the feature maps that `MAEBackbone` can give."""
        return ["stem", *(f"stage{n}" for n in range(1, 1 + self.num_hidden_layers))]

    @property
    def grid_size(self) -> tuple[int, int]:
        """Patches down and across, `(h, w)`."""
        return grid_of(self.image_size, self.patch_size)

    def check_fields(self) -> None:
        """Raise `ValueError`, naming field and value, unless the values are of the right types, in range and fit."""
        if isinstance(self.image_size, list):  # JSON has no tuples
            self.image_size = tuple(self.image_size)
        for name in _COUNTS:
            self._require(name, is_count(getattr(self, name)), "a positive int")
        for name in _SHARES:
            value = getattr(self, name)
            self._require(name, _is_number(value) and 0 <= value < 1, "a number in [0, 1)")
        for name in _SWITCHES:
            self._require(name, isinstance(getattr(self, name), bool), "True or False")
        known = isinstance(self.hidden_act, str) and self.hidden_act in ACT2FN
        self._require("hidden_act", known, "the name of an activation in transformers")
        self._require("pooling", self.pooling in _POOLINGS, f"one of {_POOLINGS}")
        eps, deviation = self.layer_norm_eps, self.initializer_range
        self._require("layer_norm_eps", _is_number(eps) and 0 < eps < float("inf"), "a positive number")
        self._require("initializer_range", _is_number(deviation) and 0 <= deviation < float("inf"), "a number from 0")
        self._check_image_size()
        for width, heads in (
            ("hidden_size", "num_attention_heads"),
            ("decoder_hidden_size", "decoder_num_attention_heads"),
        ):
            self._require(width, getattr(self, width) % 4 == 0, "divisible by 4, for the sine-cosine table")
            fits = getattr(self, width) % getattr(self, heads) == 0
            self._require(width, fits, f"divisible by {heads} ({getattr(self, heads)})")
        if not self._has_choice:  # of feature maps: then it is the last one, whatever the depth has become
            self.set_output_features_output_indices(None, None)

    def _check_image_size(self) -> None:
        size = self.image_size
        pair = isinstance(size, tuple) and len(size) == 2 and all(map(is_count, size))
        self._require("image_size", pair or is_count(size), "a positive int or a pair (height, width) of them")
        sides = size if isinstance(size, tuple) else (size,)
        fits = all(side % self.patch_size == 0 for side in sides)
        self._require("image_size", fits, f"divisible by patch_size ({self.patch_size})")

    def _require(self, name: str, holds: bool, wanted: str) -> None:
        if not holds:
            raise ValueError(f"{name} must be {wanted}, got {getattr(self, name)!r}")


def is_count(value: Any) -> bool:
    """Whether a value is a positive int; True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
