"""The calling convention of the official repository: constructor, methods, return values, key names, model names."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .checkpoint import CheckpointError, read_checkpoint
from .configuration_mae import MAEConfig, unknown_name
from .decoder import restore_order
from .masking import DEFAULT_MASK_RATIO, random_masking
from .modeling_mae import MAEForPreTraining, reconstruction_loss
from .official import LAYER_NORM, arguments_of_size, check_size, epsilon_of
from .patch_embed import patchify, unpatchify
from .vit import VisionTransformer, vit_base_patch16, vit_huge_patch14, vit_large_patch16


class MaskedAutoencoder(nn.Module):
    """`MaskedAutoencoderViT` of the official repository for its callers.

    Modules and parameters have the official names in the official order, so that checkpoints of official runs fit, and
    those of their optimizers. They are the parts of a `MAEForPreTraining`, which was made with `config`.

    Args:
        img_size: Side or `(H, W)` of the images, in pixels.
        patch_size: Patch side in pixels.
        in_chans: Channels.
        embed_dim: Width of the encoder.
        depth: Blocks of the encoder.
        num_heads: Heads of the encoder.
        decoder_embed_dim: Width of the decoder.
        decoder_depth: Blocks of the decoder.
        decoder_num_heads: Heads of the decoder.
        mlp_ratio: Width inside the MLPs divided by that outside.
        norm_layer: `nn.LayerNorm`, or a `partial` of it that sets `eps`. All official models are built with 1e-6, the
            default here; the official constructor itself defaults to PyTorch's 1e-5: pass `nn.LayerNorm` for it.
        norm_pix_loss: Predict normalised patches.

    Raises:
        ValueError: If an argument is wrong; the message gives its name in the config.
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
        """Reconstruct images.

        Args:
            imgs: `(B, C, H, W)`.
            mask_ratio: Share of patches to hide, in [0, 1).
            noise: `(B, L)`, the smallest are kept; random if None.

        Returns:
            Loss (NaN at mask ratio 0, as officially), predicted patches `(B, L, P * P * C)`, mask `(B, L)`, 1 hidden.

        Raises:
            ValueError: If images, ratio or noise do not fit.
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
        given = {} if noise is None else {"noise": noise}  # a subclass's own random_masking need not take it
        x, mask, ids_restore = self.random_masking(x, mask_ratio, **given)  # B L_keep D
        cls_tokens = (self.cls_token + self.pos_embed[:, :1]).expand(x.shape[0], -1, -1)
        x = torch.cat([cls_tokens, x], dim=1)  # B 1+L_keep D
        for block in self.blocks:
            x = block(x)
        return self.norm(x), mask, ids_restore

    def random_masking(
        self, x: Tensor, mask_ratio: float, noise: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Keep a random subset of tokens `(B, L, D)`; override it for masks of your own."""
        return random_masking(x, mask_ratio, noise)

    def forward_decoder(self, x: Tensor, ids_restore: Tensor) -> Tensor:
        """Predict all patches `(B, L, P * P * C)` from the latent `(B, 1 + L_keep, D)`."""
        x = restore_order(self.decoder_embed(x), self.mask_token, ids_restore) + self.decoder_pos_embed
        for block in self.decoder_blocks:
            x = block(x)
        return self.decoder_pred(self.decoder_norm(x))[:, 1:]

    def forward_loss(self, imgs: Tensor, pred: Tensor, mask: Tensor) -> Tensor:
        """Mean squared error over the hidden patches."""
        return reconstruction_loss(self.patchify(imgs), pred, mask, self.norm_pix_loss)

    def patchify(self, imgs: Tensor) -> Tensor:
        """Cut images `(B, C, H, W)` into patches `(B, L, P * P * C)`."""
        return patchify(imgs, self.patch_embed.patch_size[0])

    def unpatchify(self, x: Tensor) -> Tensor:
        """Put patches `(B, L, P * P * C)` together to images `(B, C, H, W)`."""
        return unpatchify(x, self.patch_embed.patch_size[0], self.patch_embed.img_size)

    def load_pretrained_encoder(self, path: str | Path) -> list[str]:
        """Load the encoder of an official `.pth` file, safely, and the decoder too if the file has one.

        Args:
            path: An encoder file (`mae_pretrain_vit_base.pth`) or a file with a decoder.

        Returns:
            The keys that the file lacks, all of the decoder: it keeps the values it had.

        Raises:
            CheckpointError: If the file cannot be read, lacks keys of the encoder, or has keys or shapes that this
                model does not have. The model is then as it was before.
        """
        loaded = read_checkpoint(path).state_dict
        own = self.state_dict()
        decoder_only = [key for key in own if key.startswith(("decoder_", "mask_token"))]
        missing = [key for key in own if key not in loaded]
        problems = {
            "it lacks": [key for key in missing if key not in decoder_only],
            "this model does not have its": [key for key in loaded if key not in own],
            "of another shape are its": [key for key in loaded if key in own and loaded[key].shape != own[key].shape],
        }
        for what, keys in problems.items():
            if keys:
                more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
                raise CheckpointError(f"{path} is no encoder of this model: {what} {', '.join(keys[:3])}{more}")
        self.load_state_dict(loaded, strict=False)
        return missing


class _Variant(MaskedAutoencoder):
    """A size of the paper: the numbers come from its preset, and every argument of `MaskedAutoencoder` overrides."""

    preset: ClassVar[str]

    def __init__(self, **overrides: Any) -> None:
        super().__init__(**arguments_of_size(self.preset, MaskedAutoencoder, overrides))


class MAEViTBase(_Variant):
    """ViT-B/16.

    | patch | width | depth | heads | decoder width, depth, heads | MLP ratio | patches at 224 | parameters  |
    |-------|-------|-------|-------|-----------------------------|-----------|----------------|-------------|
    | 16    | 768   | 12    | 12    | 512, 8, 16                  | 4         | 196            | 111,907,840 |
    """

    preset = "base"


class MAEViTLarge(_Variant):
    """ViT-L/16.

    | patch | width | depth | heads | decoder width, depth, heads | MLP ratio | patches at 224 | parameters  |
    |-------|-------|-------|-------|-----------------------------|-----------|----------------|-------------|
    | 16    | 1024  | 24    | 16    | 512, 8, 16                  | 4         | 196            | 329,541,888 |
    """

    preset = "large"


class MAEViTHuge(_Variant):
    """ViT-H/14.

    | patch | width | depth | heads | decoder width, depth, heads | MLP ratio | patches at 224 | parameters  |
    |-------|-------|-------|-------|-----------------------------|-----------|----------------|-------------|
    | 14    | 1280  | 32    | 16    | 512, 8, 16                  | 4         | 256            | 657,074,508 |
    """

    preset = "huge"


def mae_vit_base_patch16(**overrides: Any) -> MAEViTBase:
    """Make a ViT-B/16 masked autoencoder; takes the arguments of `MaskedAutoencoder`."""
    return MAEViTBase(**overrides)


def mae_vit_large_patch16(**overrides: Any) -> MAEViTLarge:
    """Make a ViT-L/16 masked autoencoder; takes the arguments of `MaskedAutoencoder`."""
    return MAEViTLarge(**overrides)


def mae_vit_huge_patch14(**overrides: Any) -> MAEViTHuge:
    """Make a ViT-H/14 masked autoencoder; takes the arguments of `MaskedAutoencoder`."""
    return MAEViTHuge(**overrides)


# the official names, which say decoder width 512 and 8 blocks
mae_vit_base_patch16_dec512d8b = mae_vit_base_patch16
mae_vit_large_patch16_dec512d8b = mae_vit_large_patch16
mae_vit_huge_patch14_dec512d8b = mae_vit_huge_patch14

_MODELS: dict[str, Callable[..., MaskedAutoencoder | VisionTransformer]] = {
    "mae_vit_base_patch16": mae_vit_base_patch16,
    "mae_vit_large_patch16": mae_vit_large_patch16,
    "mae_vit_huge_patch14": mae_vit_huge_patch14,
    "mae_vit_base_patch16_dec512d8b": mae_vit_base_patch16_dec512d8b,
    "mae_vit_large_patch16_dec512d8b": mae_vit_large_patch16_dec512d8b,
    "mae_vit_huge_patch14_dec512d8b": mae_vit_huge_patch14_dec512d8b,
    "vit_base_patch16": vit_base_patch16,
    "vit_large_patch16": vit_large_patch16,
    "vit_huge_patch14": vit_huge_patch14,
}


def list_models() -> list[str]:
    """Names that `create_model` knows."""
    return list(_MODELS)


def create_model(name: str, **overrides: Any) -> MaskedAutoencoder | VisionTransformer:
    """Make a model by its official name.

    Args:
        name: One of `list_models()`.
        **overrides: Arguments of `MaskedAutoencoder`, or of `VisionTransformer` for a classifier (`vit_...`).

    Raises:
        ValueError: If the name or an argument is unknown (near ones are listed), or a value is wrong.
    """
    if name not in _MODELS:
        raise unknown_name("model", name, _MODELS)
    return _MODELS[name](**overrides)
