"""The MAE decoder: a light ViT on encoded patches and mask tokens (He et al. 2021, section 3 "MAE decoder").

Shapes: `B` batch, `L` patches, `L_keep` visible patches, `E` encoder width, `D` decoder width, `P` patch side, `C`
channels.
"""

import torch
from torch import Tensor, nn
from transformers import initialization

from .patch_embed import square_grid
from .pos_embed import get_2d_sincos_pos_embed, interpolate_pos_embed
from .transformer import make_blocks

NO_DECODER = (
    "encoder-only weights; for a decoder use mae_visualize_vit_*.pth (raw pixels) or mae_pretrain_vit_*_full.pth "
    "(normalised pixels)"
)


def restore_order(x: Tensor, mask_token: Tensor, ids_restore: Tensor) -> Tensor:
    """Append mask tokens for the masked patches and undo the shuffle (section 3, "Simple implementation").

    Args:
        x: Class token and visible patches, `(B, 1 + L_keep, D)`.
        mask_token: `(1, 1, D)`.
        ids_restore: Position of each patch in the shuffled order, `(B, L)`.

    Returns:
        Class token and all patches in image order, `(B, 1 + L, D)`.
    """
    num_masked = ids_restore.shape[1] + 1 - x.shape[1]
    mask_tokens = mask_token.to(x.dtype).expand(x.shape[0], num_masked, -1)
    patches = torch.cat([x[:, 1:], mask_tokens], dim=1)  # B L D, shuffled
    patches = patches.gather(1, ids_restore.unsqueeze(-1).expand(-1, -1, x.shape[2]))  # B L D, image order
    return torch.cat([x[:, :1], patches], dim=1)  # B 1+L D


class MAEDecoder(nn.Module):
    """Insert mask tokens at the masked positions and predict the pixels of every patch.

    Args:
        encoder_embed_dim: Width `E` of the encoder.
        decoder_embed_dim: Width `D`, divisible by 4.
        num_patches: Patches of an image, a square number unless `grid_size` is given.
        patch_size: Patch side `P`, in pixels.
        in_chans: Channels `C`.
        depth: Number of blocks.
        num_heads: Attention heads.
        mlp_ratio: Width inside the MLPs divided by `decoder_embed_dim`.
        mlp_dim: Width inside the MLPs; `int(decoder_embed_dim * mlp_ratio)` if None.
        grid_size: `(h, w)` in patches; None for square images.
        qkv_bias: Add a bias to the fused query, key and value projections.
        drop: Dropout on the output of attention and MLP, in [0, 1).
        attn_drop: Dropout on the attention weights, in [0, 1).
        act: Activation of the MLPs.
        eps: Epsilon of the layer norms.

    Raises:
        ValueError: If `num_patches` is not a square number or differs from `grid_size`, or a width is not divisible by
            4 or by `num_heads`.
    """

    def __init__(
        self,
        encoder_embed_dim: int,
        decoder_embed_dim: int,
        num_patches: int,
        patch_size: int,
        in_chans: int = 3,
        depth: int = 8,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        *,
        mlp_dim: int | None = None,
        grid_size: tuple[int, int] | None = None,
        qkv_bias: bool = True,
        drop: float = 0.0,
        attn_drop: float = 0.0,
        act: str = "gelu",
        eps: float = 1e-6,
    ) -> None:
        super().__init__()
        self.grid_size = square_grid(num_patches) if grid_size is None else grid_size
        if self.grid_size[0] * self.grid_size[1] != num_patches:
            raise ValueError(f"grid_size {self.grid_size} does not match num_patches {num_patches}")
        self.embed = nn.Linear(encoder_embed_dim, decoder_embed_dim)
        self.mask_token = nn.Parameter(torch.empty(1, 1, decoder_embed_dim))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + num_patches, decoder_embed_dim), requires_grad=False)
        self.reset_parameters()
        self.blocks = make_blocks(
            decoder_embed_dim,
            depth,
            num_heads,
            int(decoder_embed_dim * mlp_ratio) if mlp_dim is None else mlp_dim,
            qkv_bias=qkv_bias,
            drop=drop,
            attn_drop=attn_drop,
            act=act,
            eps=eps,
        )
        self.norm = nn.LayerNorm(decoder_embed_dim, eps=eps)
        self.pred = nn.Linear(decoder_embed_dim, patch_size**2 * in_chans)

    @torch.no_grad()
    def reset_parameters(self, std: float = 0.02) -> None:
        """Initialise the mask token and the position embeddings.

        `transformers.initialization` skips parameters that were loaded from a checkpoint.

        Args:
            std: Standard deviation of the mask token; 0.02 officially (`initialize_weights` in models_mae.py).
        """
        initialization.normal_(self.mask_token, std=std)
        pos_embed = get_2d_sincos_pos_embed(self.pos_embed.shape[-1], self.grid_size, cls_token=True)  # 1+L D
        initialization.copy_(self.pos_embed, pos_embed)

    @property
    def is_untrained(self) -> bool:
        """Whether `pred.bias` is still all zeros, its initial value; the first optimizer step changes it."""
        return not self.pred.bias.any()

    def forward(
        self, x: Tensor, ids_restore: Tensor, grid_size: tuple[int, int] | None = None, **kwargs: object
    ) -> Tensor:
        """Predict all patches.

        Args:
            x: Class token and visible patches from the encoder, `(B, 1 + L_keep, E)`.
            ids_restore: Position of each patch in the shuffled order, `(B, L)`.
            grid_size: `(h, w)` of this batch if it differs from the decoder's: the position embeddings are interpolated
                for this call.
            **kwargs: Passed to the attention implementation.

        Returns:
            Predicted pixels in image order, `(B, L, P * P * C)`.
        """
        x = restore_order(self.embed(x), self.mask_token, ids_restore)  # B 1+L_keep E -> B 1+L D
        x = x + interpolate_pos_embed(self.pos_embed, self.grid_size, grid_size or self.grid_size)
        for block in self.blocks:
            x = block(x, **kwargs)
        return self.pred(self.norm(x))[:, 1:]  # B 1+L D -> B L P*P*C

    @torch.no_grad()
    def set_grid_size(self, grid_size: tuple[int, int]) -> None:
        """Interpolate the position embeddings to `(h, w)` patches permanently."""
        pos_embed = interpolate_pos_embed(self.pos_embed, self.grid_size, grid_size)
        self.pos_embed = nn.Parameter(pos_embed, requires_grad=self.pos_embed.requires_grad)
        self.grid_size = grid_size
