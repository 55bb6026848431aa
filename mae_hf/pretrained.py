"""The base class of all models: official initialisation, loading, frozen weights, other image sizes."""

import os
import warnings
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, initialization

from .attention import Attention
from .configuration_mae import MAEConfig
from .decoder import MAEDecoder
from .patch_embed import grid_of, to_pair
from .transformer import Block

HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "token", "revision")


class UntrainedWeightsWarning(UserWarning):
    """A part of the loaded model is missing in the checkpoint and must be trained: the decoder or the final norm."""


class MAEPreTrainedModel(PreTrainedModel):
    """Base class of all models, like `PreTrainedModel` in transformers."""

    config: MAEConfig
    config_class = MAEConfig
    base_model_prefix = "mae"
    main_input_name = "pixel_values"
    input_modalities = ["image"]
    supports_gradient_checkpointing = True
    _no_split_modules = ["Block"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": Block, "attentions": Attention}
    _input_embed_layer = "patch_embed"

    def __init__(self, config: MAEConfig) -> None:
        config.check_fields()
        super().__init__(config)

    def post_init(self) -> None:
        """Share the config with each attention, for `set_attn_implementation`, then initialise the weights."""
        for module in self.modules():
            if isinstance(module, Attention):
                module.config = self.config
        super().post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialise one module like the official code (appendix A.1; `initialize_weights` in models_mae.py).

        Linear layers and the patch projection, viewed as a matrix, have Xavier uniform weights and zero biases; the
        official code leaves the bias of the patch projection at PyTorch's default. Norms have transformers' default.
        `transformers.initialization` skips parameters that were loaded from a checkpoint.
        """
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            bound = (6 / (module.weight.shape[0] + module.weight[0].numel())) ** 0.5
            initialization.uniform_(module.weight, -bound, bound)
            if module.bias is not None:
                initialization.zeros_(module.bias)
        elif isinstance(module, MAEDecoder):
            module.reset_parameters(std=self.config.initializer_range)
        else:
            super()._init_weights(module)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: Any, *args: Any, output_loading_info: bool = False, **kwargs: Any
    ) -> Any:
        """Load weights and config from a folder or the Hub, like every model of transformers.

        Parameters that are frozen in a model built from a config, such as position embeddings in pretraining, are
        frozen again, because transformers makes every loaded parameter trainable.

        Warns:
            UntrainedWeightsWarning: If the decoder or the final norm is missing in the checkpoint.

        Raises:
            RuntimeError: If sizes of weights do not match, unless `ignore_mismatched_sizes=True` is passed.
            ValueError: If a checkpoint file is passed, the config belongs to another model, or the weights are for
                another image size (see `set_image_size`).
        """
        name = pretrained_model_name_or_path
        _refuse_file(name)
        ignore_mismatched_sizes = kwargs.pop("ignore_mismatched_sizes", False)
        # sizes are checked below: transformers' error states neither keys nor sizes
        loaded: Any = super().from_pretrained(
            name, *args, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
        )
        model, info = loaded
        if not ignore_mismatched_sizes:
            check_image_size(model.config, _stored_config(name, kwargs))
            _refuse_mismatched_sizes(info["mismatched_keys"])
        model._freeze()
        if untrained := model._untrained_part(set(info["missing_keys"])):
            warnings.warn(untrained, UntrainedWeightsWarning, stacklevel=2)
        return (model, info) if output_loading_info else model

    def _freeze(self) -> None:
        """Freeze the weights that are not trained: the position embeddings."""
        for key, parameter in self.named_parameters():
            if key.endswith("pos_embed"):
                parameter.requires_grad_(False)

    def _untrained_part(self, missing_keys: set[str]) -> str | None:
        """Return a warning if the checkpoint lacks a part of the model, else None; a hook for subclasses."""
        return None

    def set_image_size(self, image_size: int | tuple[int, int]) -> None:
        """Interpolate all position embeddings in two dimensions, permanently, and update the config.

        Call it on the whole model, not on its encoder alone: they share the config, which is saved with the model.

        Args:
            image_size: Side or (height, width) in pixels, divisible by the patch size.

        Raises:
            ValueError: If `image_size` is not a size, or not divisible by the patch size.
        """
        image_size = image_size if isinstance(image_size, int) else to_pair(image_size)
        grid_size = grid_of(image_size, self.config.patch_size)
        for module in self.modules():
            if isinstance(module, MAEPreTrainedModel):
                module._resize(image_size)
            elif isinstance(module, MAEDecoder):
                module.set_grid_size(grid_size)
        self.config.image_size = image_size

    def _resize(self, image_size: int | tuple[int, int]) -> None:
        """Hook for a model that has position embeddings itself."""


def check_image_size(config: MAEConfig, stored: dict[str, Any]) -> None:
    """Reject a change of the stored image size: an equal number of patches (224x224, 112x448) would hide the mismatch.

    Raises:
        ValueError: If the image sizes of `config` and `stored` differ.
    """
    found = stored.get("image_size", config.image_size)
    if to_pair(found) != to_pair(config.image_size):
        raise ValueError(
            f"the checkpoint was made for image size {found}, not {config.image_size}: load it with its own size, then "
            f"call model.set_image_size({config.image_size})"
        )


def _stored_config(name: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the config stored with a checkpoint if the arguments may change its image size, else nothing."""
    if name is None or not {"config", "image_size", "img_size"} & kwargs.keys():
        return {}
    where = {key: kwargs[key] for key in (*HUB_OPTIONS, "subfolder") if key in kwargs}
    try:
        return MAEConfig.get_config_dict(name, **where)[0]
    except OSError:  # weights without a config
        return {}


def _refuse_file(name: Any) -> None:
    """Raise `ValueError` for a checkpoint file: an existing file, or a name that ends in `.pth`."""
    if not isinstance(name, (str, os.PathLike)) or os.path.isdir(name):
        return
    if os.path.isfile(name) or os.fspath(name).endswith(".pth"):
        raise ValueError(
            f"{name} is a checkpoint file, and from_pretrained loads folders and repositories of the Hub: convert it "
            f"with `mae-hf convert {name} FOLDER`, then load the folder"
        )


def _refuse_mismatched_sizes(mismatched: set[tuple[str, Any, Any]]) -> None:
    """Raise `RuntimeError`, with keys and both sizes, if weights have another size than in the model."""
    lines = [
        f"{key}: {tuple(found)} in the checkpoint, {tuple(expected)} in the model"
        for key, found, expected in mismatched
    ]
    if lines:
        raise RuntimeError(f"size mismatch between checkpoint and model: {'; '.join(sorted(lines))}")
