"""Configuration of masked autoencoders, and the presets (named sizes)."""

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


def _size(patch_size: int, encoder: tuple[int, int, int], decoder: tuple[int, int, int]) -> dict[str, int]:
    """Return the fields of a size from width, depth and heads; the MLPs are four times as wide as their blocks."""
    hidden_size, depth, heads = encoder
    decoder_hidden_size, decoder_depth, decoder_heads = decoder
    return {
        "patch_size": patch_size,
        "hidden_size": hidden_size,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "intermediate_size": 4 * hidden_size,
        "decoder_hidden_size": decoder_hidden_size,
        "decoder_num_hidden_layers": decoder_depth,
        "decoder_num_attention_heads": decoder_heads,
        "decoder_intermediate_size": 4 * decoder_hidden_size,
    }


# To add a size, add a line. Base, large and huge are the sizes of the paper (table 3 and appendix A.1; `mae_vit_*` in
# models_mae.py). Tiny and small are ours, not the paper's: smaller widths at the depth of base, with decoders of base's
# proportions, two thirds of the encoder's width, 8 blocks, heads of width 32.
PRESETS: dict[str, dict[str, int]] = {  # patch size, then width, depth and heads of the encoder and of the decoder
    "tiny": _size(16, (192, 12, 3), (128, 8, 4)),
    "small": _size(16, (384, 12, 6), (256, 8, 8)),
    "base": _size(16, (768, 12, 12), (512, 8, 16)),
    "large": _size(16, (1024, 24, 16), (512, 8, 16)),
    "huge": _size(14, (1280, 32, 16), (512, 8, 16)),
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
_FRACTIONS = ("hidden_dropout_prob", "attention_probs_dropout_prob", "drop_path_rate", "mask_ratio")
_FLAGS = ("qkv_bias", "norm_pix_loss", "linear_probe", "apply_layernorm")
_POOLINGS = ("mean", "cls")
_STAGES = ("out_features", "out_indices")


def unknown_name(kind: str, name: str, known: Iterable[str]) -> ValueError:
    """Return the error for an unknown name; its message suggests similar names, or lists the known ones.

    Args:
        kind: What the name stands for, such as "preset".
        name: The unknown name.
        known: All known names.
    """
    names = sorted(known)
    similar = difflib.get_close_matches(name, names)
    hint = f"did you mean {', '.join(map(repr, similar))}?" if similar else f"known: {', '.join(names)}"
    return ValueError(f"unknown {kind} {name!r}; {hint}")


class MAEConfig(BackboneConfigMixin, PretrainedConfig):
    """Configuration of a masked autoencoder; the defaults are those of ViT-B/16.

    Fields have transformers' names. The paper's names (`embed_dim`, `depth`, `num_heads`, `img_size`, `in_chans`,
    `decoder_embed_dim`, `decoder_depth`, `decoder_num_heads`) are aliases, and `mlp_ratio` sets both MLP widths.

    Args:
        hidden_size: Width of the encoder, divisible by 4 and by `num_attention_heads`.
        num_hidden_layers: Number of encoder blocks.
        num_attention_heads: Attention heads of the encoder.
        intermediate_size: Width inside the MLPs of the encoder.
        hidden_act: Activation of the MLPs; "gelu" is the exact GELU.
        hidden_dropout_prob: Dropout on the output of attention and MLP, in [0, 1).
        attention_probs_dropout_prob: Dropout on the attention weights, in [0, 1).
        drop_path_rate: Stochastic depth rate of the last encoder block, in [0, 1).
        initializer_range: Standard deviation of the initial class and mask tokens; 0.02 officially.
        layer_norm_eps: Epsilon of all layer norms; 1e-6 officially (mae_vit_* in models_mae.py).
        image_size: Side or (height, width) in pixels, divisible by `patch_size`.
        patch_size: Side of a patch in pixels.
        num_channels: Channels of an image.
        qkv_bias: Add a bias to the fused query, key and value projections.
        decoder_hidden_size: Width of the decoder, divisible by 4 and by `decoder_num_attention_heads`.
        decoder_num_hidden_layers: Number of decoder blocks.
        decoder_num_attention_heads: Attention heads of the decoder.
        decoder_intermediate_size: Width inside the MLPs of the decoder.
        mask_ratio: Fraction of patches that `MAEForPreTraining` masks, in [0, 1).
        norm_pix_loss: Predict per-patch normalised pixels, that is, patches normalised by their own mean and standard
            deviation (section 3, table 1d).
        pooling: `pooler_output` of `MAEModel` and input of a classifier's head: the mean of the patch tokens, "mean",
            or the class token, "cls".
        linear_probe: Build the head of the paper's linear probe in `MAEForImageClassification`, and freeze all else.
        apply_layernorm: Apply the encoder's final norm to the feature maps of `MAEBackbone`, those of earlier blocks
            included.
        out_features: Names of the feature maps of `MAEBackbone`, in order: "stem" for the input of the first block,
            "stage1" to "stageN" for the outputs of the blocks; the last one by default.
        out_indices: The same as indices, 0 for "stem"; specify one of the two.

    Raises:
        ValueError: If a value has a wrong type or is out of range; the message states the field and the value.
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
    _stages_chosen: bool = False  # whether the feature maps were specified

    def __post_init__(
        self,
        mlp_ratio: float | None = None,
        out_features: list[str] | None = None,
        out_indices: list[int] | None = None,
        **kwargs: Any,
    ) -> None:
        """Set everything that is not a field of this class, then check all fields."""
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
        """Return the configuration of a preset (a named size).

        Args:
            name: A size of the paper, "base" (ViT-B/16), "large" (ViT-L/16) or "huge" (ViT-H/14); or "tiny" (ViT-Ti/16)
                or "small" (ViT-S/16). The last two are ours, not the paper's; their decoders have base's proportions:
                two thirds of the encoder's width, 8 blocks, heads of width 32.
            **overrides: Fields to change, by either of their names. A different `hidden_size` does not change the
                widths inside the MLPs; `mlp_ratio` sets both.

        Raises:
            ValueError: If the name or a field is unknown (the message suggests similar names), a field is given twice,
                or a value is invalid.
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
            raise ValueError(f"a field is given by both of its names: {', '.join(overrides)}")
        if "mlp_ratio" in renamed and renamed.keys() & {"intermediate_size", "decoder_intermediate_size"}:
            raise ValueError(
                "mlp_ratio sets intermediate_size and decoder_intermediate_size: specify either mlp_ratio or the widths"
            )
        return cls(**{**PRESETS[name], **renamed})

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Build a configuration from its dictionary; `kwargs` override its values, and all fields are checked again.

        Raises:
            ValueError: If the dictionary is the config of another model, or a value is invalid.
        """
        found = config_dict.get("model_type", cls.model_type)
        if found not in (cls.model_type, MAEConfig.model_type):
            raise ValueError(
                f"this is the config of a {found!r} model, not of a {cls.model_type!r} model: load a ViTMAE with "
                "mae_hf.load_vit_mae, or convert the weights with `mae-hf convert`"
            )
        chosen = kwargs if kwargs.keys() & set(_STAGES) else config_dict
        stages = [chosen.get(name) for name in _STAGES]
        result = super().from_dict(_without_stages(config_dict), **_without_stages(kwargs))
        config = result[0] if isinstance(result, tuple) else result  # with return_unused_kwargs=True, a pair
        config.check_fields()
        config.set_output_features_output_indices(*stages)  # now that the depth is known
        return result

    def save_pretrained(self, save_directory: str | PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Save the configuration; with an `auto_map`, also the code of the models (`save_code`)."""
        save_code(self, save_directory)
        super().save_pretrained(save_directory, *args, **kwargs)

    def set_output_features_output_indices(self, out_features: list[str] | None, out_indices: list[int] | None) -> None:
        """Choose the feature maps of a backbone by name or index; raise `ValueError` for unknown ones."""
        for name, value, kind in (("out_features", out_features, str), ("out_indices", out_indices, int)):
            if value is not None and not (
                isinstance(value, (list, tuple)) and {type(item) for item in value} <= {kind}
            ):
                raise ValueError(f"{name} must be a list of {kind.__name__}, got {value!r}")
        self._stages_chosen = out_features is not None or out_indices is not None
        out_features = None if out_features is None else list(out_features)
        super().set_output_features_output_indices(out_features, out_indices)

    def to_dict(self) -> dict[str, Any]:
        """Return the dictionary to save; it has the feature maps of a backbone only if they were specified."""
        fields = super().to_dict()
        fields.pop("_stages_chosen", None)
        return fields if self._stages_chosen else _without_stages(fields)

    @property
    def stage_names(self) -> list[str]:
        """Names of the feature maps that `MAEBackbone` can return."""
        return ["stem", *(f"stage{n}" for n in range(1, 1 + self.num_hidden_layers))]

    @property
    def grid_size(self) -> tuple[int, int]:
        """Patches down and across, `(h, w)`."""
        return grid_of(self.image_size, self.patch_size)

    def check_fields(self) -> None:
        """Raise `ValueError`, with field and value, if a value has a wrong type, is out of range or does not fit."""
        if isinstance(self.image_size, list):  # JSON has no tuples
            self.image_size = tuple(self.image_size)
        for name in _COUNTS:
            self._require(name, is_count(getattr(self, name)), "a positive int")
        for name in _FRACTIONS:
            value = getattr(self, name)
            self._require(name, _is_number(value) and 0 <= value < 1, "a number in [0, 1)")
        for name in _FLAGS:
            self._require(name, isinstance(getattr(self, name), bool), "True or False")
        known = isinstance(self.hidden_act, str) and self.hidden_act in ACT2FN
        self._require("hidden_act", known, "the name of an activation in transformers")
        self._require("pooling", self.pooling in _POOLINGS, f"one of {_POOLINGS}")
        eps = self.layer_norm_eps
        self._require("layer_norm_eps", _is_number(eps) and 0 < eps < float("inf"), "a positive number")
        std = self.initializer_range
        self._require("initializer_range", _is_number(std) and 0 <= std < float("inf"), "a non-negative number")
        self._check_image_size()
        self._check_width("hidden_size", "num_attention_heads")
        self._check_width("decoder_hidden_size", "decoder_num_attention_heads")
        if not self._stages_chosen:  # then it is the last one, also when the depth has changed
            self.set_output_features_output_indices(None, None)

    def _check_width(self, width: str, heads: str) -> None:
        value = getattr(self, width)
        num_heads = getattr(self, heads)
        self._require(width, value % 4 == 0, "divisible by 4, for the sine-cosine position embeddings")
        self._require(width, value % num_heads == 0, f"divisible by {heads} ({num_heads})")

    def _check_image_size(self) -> None:
        size = self.image_size
        pair = isinstance(size, tuple) and len(size) == 2 and all(map(is_count, size))
        self._require("image_size", pair or is_count(size), "a positive int or a pair (height, width) of positive ints")
        sides = size if isinstance(size, tuple) else (size,)
        fits = all(side % self.patch_size == 0 for side in sides)
        self._require("image_size", fits, f"divisible by patch_size ({self.patch_size})")

    def _require(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            raise ValueError(f"{name} must be {expected}, got {getattr(self, name)!r}")


def is_count(value: Any) -> bool:
    """Whether a value is a positive int; True and False are not."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _without_stages(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in _STAGES}
