"""Sine-cosine position embeddings and their interpolation (He et al. 2021, section 3 and appendix A.1).

Shapes: `h w` patches down and across, `L = h * w`, `D` width. The embedding of the class token precedes those of the
patches.
"""

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from .patch_embed import to_pair


def get_1d_sincos_pos_embed(embed_dim: int, positions: Tensor) -> Tensor:
    """Encode positions as sines, then cosines, with wavelengths from 2 pi to 10000 * 2 pi.

    Args:
        embed_dim: Width of the embedding, even.
        positions: `M` values in any shape.

    Returns:
        `(M, embed_dim)` in float64.

    Raises:
        ValueError: If `embed_dim` is odd.

    Source: `get_1d_sincos_pos_embed_from_grid` in facebookresearch/mae.
    """
    if embed_dim % 2:
        raise ValueError(f"embed_dim must be even, got {embed_dim}")
    half = embed_dim // 2
    frequencies = 1.0 / 10000 ** (torch.arange(half, dtype=torch.float64) / half)
    angles = torch.outer(positions.reshape(-1).double(), frequencies)  # M, D/2
    return torch.cat([angles.sin(), angles.cos()], dim=1)  # M, D


def get_2d_sincos_pos_embed(embed_dim: int, grid_size: int | tuple[int, int], cls_token: bool = False) -> Tensor:
    """Compute the position embeddings of a patch grid: the first half encodes the column, the second half the row.

    Computed in float64 and rounded once to float32. The column comes first by an accident of the official code, on
    which all released weights depend.

    Args:
        embed_dim: Width `D`, divisible by 4.
        grid_size: Side or `(h, w)` in patches.
        cls_token: Prepend a zero embedding for the class token.

    Returns:
        `(L, D)`, or `(1 + L, D)` with `cls_token`, in float32.

    Raises:
        ValueError: If `embed_dim` is not divisible by 4.

    Source: `get_2d_sincos_pos_embed` in facebookresearch/mae.
    """
    if embed_dim % 4:
        raise ValueError(f"embed_dim must be divisible by 4, got {embed_dim}")
    h, w = to_pair(grid_size)
    rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    halves = [get_1d_sincos_pos_embed(embed_dim // 2, axis) for axis in (columns, rows)]
    pos_embed = torch.cat(halves, dim=1)  # L, D
    if cls_token:
        pos_embed = torch.cat([pos_embed.new_zeros(1, embed_dim), pos_embed])  # 1+L, D
    return pos_embed.float()


def interpolate_pos_embed(pos_embed: Tensor, grid_size: tuple[int, int], new_grid_size: tuple[int, int]) -> Tensor:
    """Interpolate position embeddings to another patch grid in two dimensions; the class token keeps its embedding.

    Bicubic without anti-aliasing, like the official fine-tuning for square grids.

    Args:
        pos_embed: `(1, 1 + h * w, D)`.
        grid_size: `(h, w)` of `pos_embed`.
        new_grid_size: `(h, w)` of the result.

    Returns:
        `(1, 1 + L, D)` for the new grid, in the dtype of `pos_embed`.

    Raises:
        ValueError: If the shape of `pos_embed` does not match `grid_size`.

    Source: `interpolate_pos_embed` in facebookresearch/mae.
    """
    h, w = grid_size
    if pos_embed.ndim != 3 or pos_embed.shape[:2] != (1, 1 + h * w):
        raise ValueError(f"pos_embed must have the shape (1, {1 + h * w}, D), got {tuple(pos_embed.shape)}")
    if tuple(grid_size) == tuple(new_grid_size):
        return pos_embed
    cls_token, patches = pos_embed[:, :1], pos_embed[:, 1:]
    patches = patches.reshape(1, h, w, -1).permute(0, 3, 1, 2)  # 1 L D -> 1 D h w
    patches = patches.to(torch.promote_types(patches.dtype, torch.float32))
    patches = interpolate(patches, size=tuple(new_grid_size), mode="bicubic", align_corners=False)
    patches = patches.flatten(2).transpose(1, 2)  # 1 D h w -> 1 L D
    return torch.cat([cls_token, patches.to(pos_embed.dtype)], dim=1)
