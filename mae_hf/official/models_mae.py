"""The official pretraining model: constructor, methods, return values, key names and model names of models_mae.py.

Shapes: `B` batch, `C` channels, `H W` pixels, `P` patch side, `L` patches, `L_keep` visible patches, `D` width.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoint import CheckpointError, read_checkpoint
from ..configuration_mae import PRESETS, MAEConfig
from ..decoder import restore_order
from ..loss import reconstruction_loss
from ..masking import DEFAULT_MASK_RATIO, random_masking
from ..modeling_mae import MAEForPreTraining
from ..patch_embed import patchify, unpatchify
from .common import GROUPS, LAYER_NORM, check_size, encoder_arguments, epsilon_of


class MaskedAutoencoder(nn.Module):
    """`MaskedAutoencoderViT` of the official repository.

    Modules and parameters have the official names in the official order, so checkpoints of official runs load, and so
    do the states of their optimizers. They are the parts of a `MAEForPreTraining` built from `config`.

    Args:
        img_size: Side or `(H, W)` of the images, in pixels.
        patch_size: Patch side in pixels.
        in_chans: Number of channels.
        embed_dim: Width of the encoder.
        depth: Number of encoder blocks.
        num_heads: Attention heads of the encoder.
        decoder_embed_dim: Width of the decoder.
        decoder_depth: Number of decoder blocks.
        decoder_num_heads: Attention heads of the decoder.
        mlp_ratio: Width inside the MLPs divided by the width outside.
        norm_layer: `nn.LayerNorm`, or a `partial` of it that sets `eps`. All official models are built with 1e-6, the
            default here; the official constructor itself defaults to PyTorch's 1e-5: pass `nn.LayerNorm` for that.
        norm_pix_loss: Predict per-patch normalised pixels.

    Raises:
        ValueError: If a value is invalid; the message states the config field.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        embed_dim: int = 1024,
        depth: int = 24,
        num_heads: int = 16,
        decoder_embed_dim: int = 512,
        decoder_depth: int = 8,
        decoder_num_heads: int = 16,
        mlp_ratio: float = 4.0,
        norm_layer: Callable[[int], nn.Module] = LAYER_NORM,
        norm_pix_loss: bool = False,
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
            decoder_hidden_size=decoder_embed_dim,
            decoder_num_hidden_layers=decoder_depth,
            decoder_num_attention_heads=decoder_num_heads,
            decoder_intermediate_size=int(decoder_embed_dim * mlp_ratio),
            layer_norm_eps=epsilon_of(norm_layer),
            norm_pix_loss=norm_pix_loss,
        )
        self.norm_pix_loss = norm_pix_loss
        parts = MAEForPreTraining(self.config)
        encoder, decoder = parts.mae, parts.decoder
        self.cls_token = encoder.cls_token
        self.pos_embed = encoder.pos_embed
        self.mask_token = decoder.mask_token
        self.decoder_pos_embed = decoder.pos_embed
        self.patch_embed = encoder.patch_embed
        self.blocks = encoder.encoder.blocks
        self.norm = encoder.encoder.norm
        self.decoder_embed = decoder.embed
        self.decoder_blocks = decoder.blocks
        self.decoder_norm = decoder.norm
        self.decoder_pred = decoder.pred

    def forward(
        self, imgs: Tensor, mask_ratio: float = DEFAULT_MASK_RATIO, noise: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Mask patches, encode the visible ones and predict all of them.

        Args:
            imgs: `(B, C, H, W)`.
            mask_ratio: Fraction of patches to mask, in [0, 1).
            noise: `(B, L)`; the patches with the smallest values stay visible. Random if None.

        Returns:
            Loss (NaN at mask ratio 0, as officially), predicted patches `(B, L, P * P * C)`, mask `(B, L)`, 1 masked.

        Raises:
            ValueError: If the shape of `imgs` or `noise`, or `mask_ratio`, is invalid.
        """
        latent, mask, ids_restore = self.forward_encoder(imgs, mask_ratio, noise)
        pred = self.forward_decoder(latent, ids_restore)
        return self.forward_loss(imgs, pred, mask), pred, mask

    def forward_encoder(
        self, x: Tensor, mask_ratio: float, noise: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Encode the visible patches of images `(B, C, H, W)`.

        Returns:
            Latent `(B, 1 + L_keep, D)` in ascending noise order, mask and `ids_restore` `(B, L)`.
        """
        check_size(x, self.patch_embed)
        x = self.patch_embed(x) + self.pos_embed[:, 1:]  # B C H W -> B L D
        given = {} if noise is None else {"noise": noise}  # a subclass's random_masking may not accept noise
        x, mask, ids_restore = self.random_masking(x, mask_ratio, **given)  # B L_keep D
        cls_tokens = (self.cls_token + self.pos_embed[:, :1]).expand(x.shape[0], -1, -1)
        x = torch.cat([cls_tokens, x], dim=1)  # B 1+L_keep D
        for block in self.blocks:
            x = block(x)
        return self.norm(x), mask, ids_restore

    def random_masking(
        self, x: Tensor, mask_ratio: float, noise: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Keep a random subset of the tokens `(B, L, D)`; override it for custom masks."""
        return random_masking(x, mask_ratio, noise)

    def forward_decoder(self, x: Tensor, ids_restore: Tensor) -> Tensor:
        """Predict all patches `(B, L, P * P * C)` from the latent `(B, 1 + L_keep, D)`."""
        x = restore_order(self.decoder_embed(x), self.mask_token, ids_restore) + self.decoder_pos_embed
        for block in self.decoder_blocks:
            x = block(x)
        return self.decoder_pred(self.decoder_norm(x))[:, 1:]

    def forward_loss(self, imgs: Tensor, pred: Tensor, mask: Tensor) -> Tensor:
        """Compute the mean squared error over the masked patches."""
        return reconstruction_loss(self.patchify(imgs), pred, mask, self.norm_pix_loss)

    def patchify(self, imgs: Tensor) -> Tensor:
        """Split images `(B, C, H, W)` into patches `(B, L, P * P * C)`."""
        return patchify(imgs, self.patch_embed.patch_size[0])

    def unpatchify(self, x: Tensor) -> Tensor:
        """Assemble patches `(B, L, P * P * C)` into images `(B, C, H, W)`."""
        return unpatchify(x, self.patch_embed.patch_size[0], self.patch_embed.img_size)

    def load_pretrained_encoder(self, path: str | Path) -> list[str]:
        """Load the encoder of an official `.pth` file safely, and its decoder too if the file has one.

        Args:
            path: An encoder file (`mae_pretrain_vit_base.pth`) or a file with a decoder.

        Returns:
            The missing keys, all of them the decoder's: those parameters keep their values.

        Raises:
            CheckpointError: If the file cannot be read, misses keys of the encoder, or has unexpected keys or a size
                mismatch. The model is then unchanged.
        """
        loaded = read_checkpoint(path).state_dict
        own = self.state_dict()
        missing = [key for key in own if key not in loaded]
        problems = {
            "missing keys": [key for key in missing if not key.startswith(("decoder_", "mask_token"))],
            "unexpected keys": [key for key in loaded if key not in own],
            "size mismatch": [key for key in loaded if key in own and loaded[key].shape != own[key].shape],
        }
        for problem, keys in problems.items():
            if keys:
                more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
                raise CheckpointError(f"{path} does not fit this model: {problem}: {', '.join(keys[:3])}{more}")
        self.load_state_dict(loaded, strict=False)
        return missing

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters without weight decay, besides the one-dimensional ones."""
        return {"pos_embed", "decoder_pos_embed"}

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Return the patterns by which timm's optimizers decay learning rates layer by layer.

        The decoder is in the last layer, with the encoder's final norm.

        Args:
            coarse: Accepted for timm; the groups are the same.
        """
        return dict(GROUPS)


def _arguments(size: str) -> dict[str, Any]:
    config = MAEConfig.from_preset(size)
    return encoder_arguments(config) | {
        "decoder_embed_dim": config.decoder_hidden_size,
        "decoder_depth": config.decoder_num_hidden_layers,
        "decoder_num_heads": config.decoder_num_attention_heads,
    }


class MAEViTBase(MaskedAutoencoder):
    """ViT-B/16; takes the arguments of `MaskedAutoencoder` by keyword.

    | patch | width | depth | heads | decoder width, depth, heads | MLP ratio | patches at 224 | parameters  |
    |-------|-------|-------|-------|-----------------------------|-----------|----------------|-------------|
    | 16    | 768   | 12    | 12    | 512, 8, 16                  | 4         | 196            | 111,907,840 |
    """

    def __init__(self, **overrides: Any) -> None:
        super().__init__(**(_arguments("base") | overrides))


class MAEViTLarge(MaskedAutoencoder):
    """ViT-L/16; takes the arguments of `MaskedAutoencoder` by keyword.

    | patch | width | depth | heads | decoder width, depth, heads | MLP ratio | patches at 224 | parameters  |
    |-------|-------|-------|-------|-----------------------------|-----------|----------------|-------------|
    | 16    | 1024  | 24    | 16    | 512, 8, 16                  | 4         | 196            | 329,541,888 |
    """

    def __init__(self, **overrides: Any) -> None:
        super().__init__(**(_arguments("large") | overrides))


class MAEViTHuge(MaskedAutoencoder):
    """ViT-H/14; takes the arguments of `MaskedAutoencoder` by keyword.

    | patch | width | depth | heads | decoder width, depth, heads | MLP ratio | patches at 224 | parameters  |
    |-------|-------|-------|-------|-----------------------------|-----------|----------------|-------------|
    | 14    | 1280  | 32    | 16    | 512, 8, 16                  | 4         | 256            | 657,074,508 |
    """

    def __init__(self, **overrides: Any) -> None:
        super().__init__(**(_arguments("huge") | overrides))


def mae_vit_base_patch16(**overrides: Any) -> MAEViTBase:
    """Make a ViT-B/16 masked autoencoder; takes the arguments of `MaskedAutoencoder`."""
    return MAEViTBase(**overrides)


def mae_vit_large_patch16(**overrides: Any) -> MAEViTLarge:
    """Make a ViT-L/16 masked autoencoder; takes the arguments of `MaskedAutoencoder`."""
    return MAEViTLarge(**overrides)


def mae_vit_huge_patch14(**overrides: Any) -> MAEViTHuge:
    """Make a ViT-H/14 masked autoencoder; takes the arguments of `MaskedAutoencoder`."""
    return MAEViTHuge(**overrides)


# the official names: the class, and factories whose name states a decoder 512 wide with 8 blocks
MaskedAutoencoderViT = MaskedAutoencoder
mae_vit_base_patch16_dec512d8b = mae_vit_base_patch16
mae_vit_large_patch16_dec512d8b = mae_vit_large_patch16
mae_vit_huge_patch14_dec512d8b = mae_vit_huge_patch14


def _models() -> dict[str, Callable[..., MaskedAutoencoder]]:
    """Return the factories of all sizes in `PRESETS`: those above, and one made here for each other size."""
    models: dict[str, Callable[..., MaskedAutoencoder]] = {}
    for size in PRESETS:
        config = MAEConfig.from_preset(size)
        name = f"mae_vit_{size}_patch{config.patch_size}"
        decoder = f"dec{config.decoder_hidden_size}d{config.decoder_num_hidden_layers}b"
        models[name] = globals().get(name) or partial(MaskedAutoencoder, **_arguments(size))
        models[f"{name}_{decoder}"] = models[name]
    return models


MODELS = _models()
globals().update(MODELS)  # for scripts that look up `models_mae.__dict__[name]`
