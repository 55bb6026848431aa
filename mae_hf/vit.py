"""The official classifiers for their callers: constructor, methods, key names and model names of models_vit.py."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .configuration_mae import MAEConfig
from .modeling_mae import MAEForImageClassification
from .official import LAYER_NORM, arguments_of_size, check_size, epsilon_of


class VisionTransformer(nn.Module):
    """`VisionTransformer` of the official repository for its callers.

    Modules and parameters have the official names in the official order, so that checkpoints of official runs fit. They
    are the parts of a `MAEForImageClassification`, which was made with `config` and has its initialisation.

    Args:
        global_pool: Pool the mean of the patch tokens and normalise it (`fc_norm`), in place of the class token.
        img_size: Side or `(H, W)` of the images, in pixels.
        patch_size: Patch side in pixels.
        in_chans: Channels.
        num_classes: Outputs of the head; 0 for features.
        embed_dim: Width.
        depth: Blocks.
        num_heads: Attention heads.
        mlp_ratio: Width inside the MLPs divided by that outside.
        qkv_bias: Give the fused projections a bias.
        drop_rate: Dropout on tokens, and on the output of attention and MLP, in [0, 1).
        attn_drop_rate: Dropout on the attention weights, in [0, 1).
        drop_path_rate: Stochastic depth of the last block, in [0, 1); it grows linearly from 0 in the first.
        norm_layer: `nn.LayerNorm`, or a `partial` of it that sets `eps`; all official models are built with 1e-6.

    Raises:
        ValueError: If an argument is wrong; the message gives its name in the config.
    """

    def __init__(
        self,
        global_pool: bool = False,
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
        """Classify images `(B, C, H, W)`: `(B, num_classes)`; raises `ValueError` if they do not fit."""
        return self.head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """What the head reads, `(B, D)`."""
        check_size(x, self.patch_embed)
        x = self.patch_embed(x)  # B C H W -> B L D
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1) + self.pos_embed  # B 1+L D
        x = self.pos_drop(x)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return self.fc_norm(x[:, 1:].mean(dim=1) if self.global_pool else x[:, 0])

    def no_weight_decay(self) -> set[str]:
        """Parameters that the official recipe does not decay, besides those of one dimension."""
        return {"pos_embed", "cls_token"}


def vit_base_patch16(**overrides: Any) -> VisionTransformer:
    """Make a ViT-B/16 classifier; takes the arguments of `VisionTransformer`."""
    return _of_size("base", overrides)


def vit_large_patch16(**overrides: Any) -> VisionTransformer:
    """Make a ViT-L/16 classifier; takes the arguments of `VisionTransformer`."""
    return _of_size("large", overrides)


def vit_huge_patch14(**overrides: Any) -> VisionTransformer:
    """Make a ViT-H/14 classifier; takes the arguments of `VisionTransformer`."""
    return _of_size("huge", overrides)


def _of_size(preset: str, overrides: dict[str, Any]) -> VisionTransformer:
    return VisionTransformer(**arguments_of_size(preset, VisionTransformer, overrides))
