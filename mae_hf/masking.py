"""Which patches the encoder sees (He et al. 2021, section 3 "Masking"; the strategies of Table 1f and figure 6).

Shapes: `B` batch, `h w` patches down and across, `L = h * w`, `L_keep` visible patches, `D` width.
A mask has 0 or False where a patch is visible and 1 or True where it is hidden.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

DEFAULT_MASK_RATIO = 0.75  # section 4.1, figure 5
_MIN_BLOCK, _MIN_ASPECT = 16, 0.3  # patches; height to width: Bao et al. 2021, algorithm 1


class MaskingOutput(NamedTuple):
    """What is left of a batch of tokens."""

    x_masked: Tensor
    """The visible tokens in ascending noise order, `(B, L_keep, D)`."""
    mask: Tensor
    """0 visible, 1 hidden, in image order, `(B, L)` float32."""
    ids_restore: Tensor
    """Where each patch stands in the shuffled order, `(B, L)` int64."""


def random_masking(tokens: Tensor, mask_ratio: float, noise: Tensor | None = None) -> MaskingOutput:
    """Keep a random subset of the patches of each image: shuffle, and drop the end of the list (section 3, "Masking").

    Args:
        tokens: Patch tokens without the class token, `(B, L, D)`.
        mask_ratio: Share of patches to hide, in [0, 1).
        noise: Sort keys `(B, L)` of any dtype, the smallest are kept; uniform in [0, 1) if None.

    Returns:
        `x_masked` `(B, L_keep, D)` with `L_keep = int(L * (1 - mask_ratio))`, `mask` and `ids_restore` `(B, L)`.

    Raises:
        ValueError: If `mask_ratio` is outside [0, 1) or leaves no patch, or `noise` has another shape or a NaN.

    Source: `MaskedAutoencoderViT.random_masking` in facebookresearch/mae.
    """
    batch, length, _ = tokens.shape
    if not 0 <= mask_ratio < 1:
        raise ValueError(f"mask_ratio must be in [0, 1), got {mask_ratio}")
    len_keep = int(length * (1 - mask_ratio))
    if len_keep < 1:
        raise ValueError(f"mask_ratio {mask_ratio} leaves none of {length} patches visible: choose a smaller one")
    if noise is None:
        noise = torch.rand(batch, length, device=tokens.device)
    else:
        check_noise(noise, batch, length)  # looks at its values, for which a GPU has to finish first
    return keep_smallest(tokens, noise.to(tokens.device), len_keep)


def masking_from_bool(tokens: Tensor, bool_masked_pos: Tensor) -> MaskingOutput:
    """Keep the patches that a given mask leaves visible, in image order.

    Args:
        tokens: Patch tokens without the class token, `(B, L, D)`.
        bool_masked_pos: `(B, L)` bool (or 0 and 1), True is hidden, the same number in every row.

    Returns:
        As `random_masking`.

    Raises:
        ValueError: If the mask has another shape or other values, hides all patches, or hides more in one row than in
            another.
    """
    batch, length, _ = tokens.shape
    if tuple(bool_masked_pos.shape) != (batch, length):
        raise ValueError(f"bool_masked_pos must have the shape {(batch, length)}, got {tuple(bool_masked_pos.shape)}")
    hidden = bool_masked_pos.to(tokens.device)
    if hidden.dtype != torch.bool:
        if not ((hidden == 0) | (hidden == 1)).all():
            values = hidden.unique()[:5].tolist()
            raise ValueError(f"bool_masked_pos must be bool, or hold nothing but 0 and 1, got {values}")
        hidden = hidden.bool()
    visible = length - hidden.sum(dim=1)  # B
    if (visible != visible[0]).any():
        counts = (length - visible).tolist()
        raise ValueError(f"bool_masked_pos must hide the same number of patches in every row, got {counts}")
    len_keep = int(visible[0])
    if len_keep < 1:
        raise ValueError(f"bool_masked_pos hides all {length} patches: leave at least one visible")
    order = torch.arange(length, device=tokens.device)
    return keep_smallest(tokens, order + length * hidden, len_keep)  # the hidden ones sort behind all visible ones


def check_noise(noise: Tensor, batch: int, length: int) -> None:
    """Raise `ValueError` unless noise is `(batch, length)` and free of NaN, which has no place in an order.

    NaN is looked for on the CPU alone: elsewhere each step would wait for the device.
    """
    if tuple(noise.shape) != (batch, length):
        raise ValueError(f"noise must have the shape {(batch, length)}, got {tuple(noise.shape)}")
    if not torch.compiler.is_compiling() and noise.device.type == "cpu" and noise.isnan().any():
        raise ValueError("noise must not contain NaN")


def keep_smallest(tokens: Tensor, noise: Tensor, len_keep: int) -> MaskingOutput:
    """Sort each row by noise, `(B, L)`, and keep the first `len_keep` tokens."""
    ids_shuffle = torch.argsort(noise, dim=1, stable=True)  # B L: shuffled order -> image order
    ids_restore = torch.argsort(ids_shuffle, dim=1)  # B L: image order -> shuffled order
    ids_keep = ids_shuffle[:, :len_keep]  # B L_keep
    x_masked = tokens.gather(1, ids_keep.unsqueeze(-1).expand(-1, -1, tokens.shape[2]))  # B L D -> B L_keep D
    mask = (ids_restore >= len_keep).float()  # B L
    return MaskingOutput(x_masked, mask, ids_restore)


def block_masking(
    batch_size: int,
    grid_size: tuple[int, int],
    mask_ratio: float = DEFAULT_MASK_RATIO,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Hide random blocks, the "block-wise" strategy of Table 1f, which is that of BEiT (Bao et al. 2021, algorithm 1).

    Rectangles of at least 16 patches and an aspect ratio between 0.3 and 1 / 0.3, cut to the image where it is smaller,
    are hidden until the ratio is reached; of the last one only as many patches as are still needed, row by row.

    Args:
        batch_size: `B`.
        grid_size: `(h, w)` in patches.
        mask_ratio: Share of patches to hide, in [0, 1); as many stay visible as with `random_masking`.
        generator: Source of randomness.

    Returns:
        `(B, L)` bool, True is hidden: for `bool_masked_pos`.

    Raises:
        ValueError: If `mask_ratio` is outside [0, 1) or leaves no patch visible.
    """
    h, w = grid_size
    if not 0 <= mask_ratio < 1 or int(h * w * (1 - mask_ratio)) < 1:
        raise ValueError(f"mask_ratio must be in [0, 1) and leave one of {h * w} patches visible, got {mask_ratio}")
    num_hidden = h * w - int(h * w * (1 - mask_ratio))
    return torch.stack([_hide_blocks(h, w, num_hidden, generator) for _ in range(batch_size)])


def _hide_blocks(h: int, w: int, num_hidden: int, generator: torch.Generator | None) -> Tensor:
    hidden = torch.zeros(h, w, dtype=torch.bool)
    while (missing := num_hidden - int(hidden.sum())) > 0:
        area, aspect, down, across = torch.rand(4, generator=generator).tolist()
        area = _MIN_BLOCK + area * max(missing - _MIN_BLOCK, 0)
        aspect = math.exp((2 * aspect - 1) * math.log(1 / _MIN_ASPECT))
        height, width = min(h, round(math.sqrt(area * aspect))), min(w, round(math.sqrt(area / aspect)))
        top, left = int(down * (h - height + 1)), int(across * (w - width + 1))
        block = torch.zeros_like(hidden)
        block[top : top + height, left : left + width] = True
        new = (block & ~hidden).nonzero()[:missing]  # at most as many as are still needed
        hidden[new[:, 0], new[:, 1]] = True
    return hidden.flatten()


def grid_masking(batch_size: int, grid_size: tuple[int, int], mask_ratio: float = DEFAULT_MASK_RATIO) -> Tensor:
    """Keep one patch of every `s * s` at regular places, the "grid-wise" strategy of Table 1f (there `s` is 2).

    Args:
        batch_size: `B`.
        grid_size: `(h, w)` in patches.
        mask_ratio: 0, 3/4, 8/9, 15/16 ...: 1 - 1 / (s * s) for a whole number `s` no larger than the grid. Where `s`
            does not divide a side of the grid, a little less is hidden.

    Returns:
        `(B, L)` bool, True is hidden, the same in every row: for `bool_masked_pos`.

    Raises:
        ValueError: If no whole number `s` gives `mask_ratio`.
    """
    h, w = grid_size
    step = round((1 - mask_ratio) ** -0.5) if 0 <= mask_ratio < 1 else 0
    if not 1 <= step <= min(h, w) or abs(1 - 1 / step**2 - mask_ratio) > 1e-3:
        raise ValueError(
            f"grid-wise masking keeps one patch of every s * s: mask_ratio must be 0, 0.75, 0.889, 0.938 ... "
            f"for a grid of {h}x{w}, got {mask_ratio}"
        )
    hidden = torch.ones(h, w, dtype=torch.bool)
    hidden[::step, ::step] = False
    return hidden.flatten().repeat(batch_size, 1)
