"""The official classifier: constructor, methods, key names and model names of models_vit.py, as timm's tools use it.

Shapes: `B` batch, `C` channels, `H W` pixels, `L` patches, `D` width.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..configuration_mae import PRESETS, MAEConfig
from ..modeling_mae import MAEForImageClassification
from .common import GROUPS, LAYER_NORM, check_size, encoder_arguments, epsilon_of

_POOLINGS = {"avg": True, "token": False}  # timm's names


class VisionTransformer(nn.Module):
    """`VisionTransformer` of the official repository.

    Modules and parameters have the official names in the official order, so checkpoints of official runs load. They are
    the parts of a `MAEForImageClassification` built from `config`, with its initialisation.

    Args:
        global_pool: Classify the mean of the patch tokens, normalised by `fc_norm`, instead of the class token.
        img_size: Side or `(H, W)` of the images, in pixels.
        patch_size: Patch side in pixels.
        in_chans: Number of channels.
        num_classes: Outputs of the head; 0 for features.
        embed_dim: Width.
        depth: Number of blocks.
        num_heads: Attention heads.
        mlp_ratio: Width inside the MLPs divided by the width outside.
        qkv_bias: Give the fused projections a bias.
        drop_rate: Dropout on tokens, and on the output of attention and MLP, in [0, 1).
        attn_drop_rate: Dropout on the attention weights, in [0, 1).
        drop_path_rate: Stochastic depth of the last block, in [0, 1); it grows linearly from 0 in the first.
        norm_layer: `nn.LayerNorm`, or a `partial` of it that sets `eps`; all official models are built with 1e-6.

    Attributes:
        num_classes: Outputs of the head; 0 for features.
        num_features: Number of input features of the head; `embed_dim` is the same.

    Raises:
        ValueError: If a value is invalid; the message states the config field.
    """

    def __init__(
        self,
        global_pool: bool | str = False,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        norm_layer: Callable[[int], nn.Module] = LAYER_NORM,
    ) -> None:
        super().__init__()
        global_pool = _is_mean(global_pool)
        _check_classes(num_classes)
        self.config = MAEConfig(
            image_size=img_size,
            patch_size=patch_size,
            num_channels=in_chans,
            hidden_size=embed_dim,
            num_hidden_layers=depth,
            num_attention_heads=num_heads,
            intermediate_size=int(embed_dim * mlp_ratio),
            qkv_bias=qkv_bias,
            hidden_dropout_prob=drop_rate,
            attention_probs_dropout_prob=attn_drop_rate,
            drop_path_rate=drop_path_rate,
            layer_norm_eps=epsilon_of(norm_layer),
            pooling="mean" if global_pool else "cls",
        )
        self.config.num_labels = num_classes
        self.global_pool = global_pool
        self.num_classes = num_classes
        self.num_features = embed_dim
        self.embed_dim = embed_dim
        parts = MAEForImageClassification(self.config)
        self.cls_token = parts.mae.cls_token
        self.pos_embed = parts.mae.pos_embed
        self.patch_embed = parts.mae.patch_embed
        self.pos_drop = nn.Dropout(drop_rate)
        self.blocks = parts.mae.encoder.blocks
        self.norm = parts.mae.encoder.norm
        self.head = parts.head
        self.fc_norm = parts.fc_norm

    def forward(self, x: Tensor) -> Tensor:
        """Classify images `(B, C, H, W)`: `(B, num_classes)`; raises `ValueError` for another shape."""
        return self.head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """Compute the input of the head, `(B, D)`, from images `(B, C, H, W)`."""
        check_size(x, self.patch_embed)
        x = self.patch_embed(x)  # B C H W -> B L D
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1) + self.pos_embed  # B 1+L D
        x = self.pos_drop(x)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return self.fc_norm(x[:, 1:].mean(dim=1) if self.global_pool else x[:, 0])

    def get_classifier(self) -> nn.Module:
        """Return the head."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: bool | str | None = None) -> None:
        """Replace the head by one initialised as in main_finetune.py (weights trunc-normal, std 2e-5; zero bias).

        Args:
            num_classes: Outputs of the new head; 0 for features.
            global_pool: True or "avg" for the mean of the patch tokens, False or "token" for the class token; None
                keeps the pooling. A change also replaces the layer norm before the head by a freshly initialised one.

        Raises:
            ValueError: If `num_classes` is negative or `global_pool` is unknown.
        """
        _check_classes(num_classes)
        if global_pool is not None:
            self._set_pooling(_is_mean(global_pool))
        self.num_classes = num_classes
        self.config.num_labels = num_classes
        if num_classes == 0:
            self.head = nn.Identity()
            return
        self.head = nn.Linear(self.embed_dim, num_classes).to(self.cls_token)
        nn.init.trunc_normal_(self.head.weight, std=2e-5)
        nn.init.zeros_(self.head.bias)

    def _set_pooling(self, mean: bool) -> None:
        if mean == self.global_pool:
            return
        norm = nn.LayerNorm(self.embed_dim, eps=self.config.layer_norm_eps).to(self.cls_token)
        self.norm = nn.Identity() if mean else norm
        self.fc_norm = norm if mean else nn.Identity()
        self.global_pool = mean
        self.config.pooling = "mean" if mean else "cls"

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters without weight decay, besides the one-dimensional ones."""
        return {"pos_embed", "cls_token"}

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Return the patterns by which timm's optimizers decay learning rates layer by layer.

        The layers are those of util/lr_decay.py: 0 for the embeddings, N + 1 for block N, the last for norm and head.

        Args:
            coarse: Accepted for timm; the groups are the same.
        """
        return dict(GROUPS)


def _is_mean(global_pool: bool | str) -> bool:
    if not isinstance(global_pool, str):
        return bool(global_pool)
    if global_pool not in _POOLINGS:
        raise ValueError(f'global_pool must be True, False, "avg" or "token", got {global_pool!r}')
    return _POOLINGS[global_pool]


def _check_classes(num_classes: int) -> None:
    if num_classes < 0:
        raise ValueError(f"num_classes must be a non-negative int, got {num_classes}")


def vit_base_patch16(**overrides: Any) -> VisionTransformer:
    """Make a ViT-B/16 classifier; takes the arguments of `VisionTransformer`."""
    return _of_size("base", **overrides)


def vit_large_patch16(**overrides: Any) -> VisionTransformer:
    """Make a ViT-L/16 classifier; takes the arguments of `VisionTransformer`."""
    return _of_size("large", **overrides)


def vit_huge_patch14(**overrides: Any) -> VisionTransformer:
    """Make a ViT-H/14 classifier; takes the arguments of `VisionTransformer`."""
    return _of_size("huge", **overrides)


def _of_size(size: str, **overrides: Any) -> VisionTransformer:
    return VisionTransformer(**(encoder_arguments(MAEConfig.from_preset(size)) | overrides))


def _models() -> dict[str, Callable[..., VisionTransformer]]:
    """Return the factories of all sizes in `PRESETS`: those above, and one made here for each other size."""
    models: dict[str, Callable[..., VisionTransformer]] = {}
    for size in PRESETS:
        name = f"vit_{size}_patch{MAEConfig.from_preset(size).patch_size}"
        models[name] = globals().get(name) or partial(_of_size, size)
    return models


MODELS = _models()
globals().update(MODELS)  # for scripts that look up `models_vit.__dict__[name]`
