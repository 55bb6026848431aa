"""What all models share: official initialisation, loading, frozen tables, other image sizes."""

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, initialization

from .attention import Attention
from .configuration_mae import MAEConfig
from .decoder import MAEDecoder
from .patch_embed import grid_of, to_pair
from .pos_embed import get_2d_sincos_pos_embed
from .transformer import Block
from .vit_mae import read_vit_mae, warn_about_epsilon

_HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "token", "revision")


class MAEPreTrainedModel(PreTrainedModel):
    """Base of all models, as `PreTrainedModel` is of those of transformers."""

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
        """Give each attention the config, which `set_attn_implementation` changes, then initialise the weights."""
        for module in self.modules():
            if isinstance(module, Attention):
                module.config = self.config
        super().post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialise one module officially (appendix A.1; `initialize_weights` in models_mae.py).

        Xavier uniform for each Linear and for the patch projection seen as a matrix, zero biases (that of the patch
        projection too, which the official code leaves at PyTorch's default), normal tokens, sine-cosine tables. The
        functions of `initialization` leave alone what came from a checkpoint.
        """
        if isinstance(module, nn.Linear | nn.Conv2d):
            bound = (6 / (module.weight.shape[0] + module.weight[0].numel())) ** 0.5
            initialization.uniform_(module.weight, -bound, bound)
            if module.bias is not None:
                initialization.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            initialization.ones_(module.weight)
            initialization.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm1d):
            for name, buffer in module.named_buffers():  # what `reset_running_stats` does
                (initialization.ones_ if name == "running_var" else initialization.zeros_)(buffer)
        elif isinstance(module, MAEDecoder):
            initialization.normal_(module.mask_token, std=self.config.initializer_range)
            table = get_2d_sincos_pos_embed(module.pos_embed.shape[-1], module.grid_size, cls_token=True)
            initialization.copy_(module.pos_embed, table)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: Any, *args: Any, output_loading_info: bool = False, **kwargs: Any
    ) -> Any:
        """Load weights and config from a folder or the Hub, as every transformers model does.

        What a fresh model freezes comes back frozen: the position tables, unless it is a classifier (transformers makes
        every loaded weight trainable).

        Raises:
            ValueError: If the position tables belong to another image size; see `set_image_size`.
        """
        name, ignore_mismatched_sizes = pretrained_model_name_or_path, kwargs.pop("ignore_mismatched_sizes", False)
        loaded: Any = super().from_pretrained(
            name, *args, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
        )
        model, info = loaded
        if not ignore_mismatched_sizes:
            _refuse_other_size(model.config, _stored_config(name, kwargs))
            _refuse_mismatched_sizes(info["mismatched_keys"])
        model._freeze()
        if lack := model._lack(set(info["missing_keys"])):
            warnings.warn(f"these weights {lack}", UserWarning, stacklevel=2)
        return (model, info) if output_loading_info else model

    @classmethod
    def from_vit_mae(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Any:
        """Load the weights of transformers' ViTMAE, such as "facebook/vit-mae-base".

        Args:
            pretrained_model_name_or_path: Folder or Hub id; safetensors or `pytorch_model.bin`, sharded or not.
            **kwargs: As for `from_pretrained`: fields of the config (`layer_norm_eps=1e-6`: files on the Hub say 1e-12,
                and this warns of it), `dtype`, `device_map`, `revision`, `token`, `output_loading_info`, ...

        Returns:
            The model, in eval mode; what the weights lack (a decoder, a head) is new, as for `from_pretrained`.

        Warns:
            UserWarning: If the epsilon is ViTMAE's default, or a decoder is asked for that is not there.

        Raises:
            CheckpointError: If config or weights are damaged, or keys are not those of a ViTMAE.
            OSError: If there is no such repository.
            RuntimeError: If the weights are of other shapes than the config says.
            ValueError: If the config is of another model or wrong, or an argument is given that this does not take.
        """
        for name in ("config", "state_dict", "subfolder", "use_safetensors", "variant"):
            if name in kwargs:
                raise ValueError(f"from_vit_mae does not take {name}")
        hub_options = {name: kwargs.pop(name) for name in _HUB_OPTIONS if name in kwargs}
        theirs, weights = read_vit_mae(pretrained_model_name_or_path, **hub_options)
        config, kwargs = MAEConfig.from_dict(theirs.to_diff_dict(), return_unused_kwargs=True, **kwargs)
        _refuse_other_size(config, {"image_size": theirs.image_size})
        warn_about_epsilon(config)
        return cls.from_pretrained(None, config=config, state_dict=weights, **kwargs)

    def _freeze(self) -> None:
        """Freeze what is not trained: the position tables."""
        for key, parameter in self.named_parameters():
            if key.endswith("pos_embed"):
                parameter.requires_grad_(False)

    def _lack(self, missing_keys: set[str]) -> str | None:
        """Hook for a model that can be loaded from a folder which lacks a part of it: what to say of the weights."""
        return None

    def set_image_size(self, image_size: int | tuple[int, int]) -> None:
        """Resize every position table in two dimensions, for good, and write the size into the config.

        Call it on the whole model, not on its encoder alone: they share one config, by which the whole is saved.

        Args:
            image_size: Side or (height, width) in pixels, divisible by the patch size.

        Raises:
            ValueError: If `image_size` is no size, or not divisible by the patch size.
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
        """Hook for a model that holds a position table itself."""


def _stored_config(name: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The config beside a checkpoint if the call could have changed its image size, else nothing."""
    if name is None or not {"config", "image_size", "img_size"} & kwargs.keys():
        return {}
    where = {key: kwargs[key] for key in (*_HUB_OPTIONS, "subfolder") if key in kwargs}
    try:
        return MAEConfig.get_config_dict(name, **where)[0]
    except OSError:  # weights alone
        return {}


def _refuse_other_size(config: MAEConfig, stored: dict[str, Any]) -> None:
    """Raise if a checkpoint is loaded in another size: if the number of patches agrees, nothing else would tell."""
    found, wanted = stored.get("image_size", config.image_size), config.image_size
    if to_pair(found) != to_pair(wanted):
        raise ValueError(
            f"the checkpoint was made for image size {found}, not {wanted}: load it with the size it has, then call "
            f"model.set_image_size({wanted})"
        )


def _refuse_mismatched_sizes(mismatched: set[tuple[str, Any, Any]]) -> None:
    """Raise if weights in a checkpoint are of other shapes than in the model."""
    lines = [f"{key}: {tuple(found)} in the checkpoint, {tuple(made)} in the model" for key, found, made in mismatched]
    if lines:
        raise RuntimeError(f"weights of other shapes in the checkpoint: {'; '.join(sorted(lines))}")
