"""Which patches the encoder sees (He et al. 2021, section 3 "Masking"; the strategies of table 1f and figure 6).

Shapes: `B` batch, `h w` patches down and across, `L = h * w`, `L_keep` visible patches, `D` width.
A mask is 0 or False where a patch is visible and 1 or True where it is masked.

To add a masking strategy, write a function with the signature of `MaskFunction` and add a line to `MASKS`.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

DEFAULT_MASK_RATIO = 0.75  # section 4.1, figure 5
_MIN_BLOCK = 16  # patches: Bao et al. 2021, algorithm 1
_MIN_ASPECT = 0.3  # height / width; the maximum is 1 / 0.3 (same algorithm)


class MaskingOutput(NamedTuple):
    """The visible tokens of a batch, and how to restore the order of all patches."""

    x_masked: Tensor
    """The visible tokens in ascending noise order, `(B, L_keep, D)`."""
    mask: Tensor
    """0 visible, 1 masked, in image order, `(B, L)` float32."""
    ids_restore: Tensor
    """Position of each patch in the shuffled order, `(B, L)` int64."""


def random_masking(tokens: Tensor, mask_ratio: float, noise: Tensor | None = None) -> MaskingOutput:
    """Keep a random subset of the patches of each image: shuffle, and drop the end of the list (section 3, "Masking").

    Args:
        tokens: Patch tokens without the class token, `(B, L, D)`.
        mask_ratio: Fraction of patches to mask, in [0, 1).
        noise: `(B, L)`, any dtype; the patches with the smallest values stay visible. Uniform in [0, 1) if None.

    Returns:
        `x_masked` `(B, L_keep, D)` with `L_keep = int(L * (1 - mask_ratio))`, `mask` and `ids_restore` `(B, L)`.

    Raises:
        ValueError: If `mask_ratio` is outside [0, 1) or leaves no patch visible, or `noise` is not `(B, L)` or contains
            NaN (checked on the CPU only).

    Source: `MaskedAutoencoderViT.random_masking` in facebookresearch/mae.
    """
    batch, length, _ = tokens.shape
    len_keep = num_visible(length, mask_ratio)
    if noise is None:
        noise = torch.rand(batch, length, device=tokens.device)
    else:
        check_noise(noise, batch, length)  # before it is moved: reading values of a GPU tensor would synchronise
    return keep_smallest(tokens, noise.to(tokens.device), len_keep)


def masking_from_bool(tokens: Tensor, bool_masked_pos: Tensor) -> MaskingOutput:
    """Apply a custom mask: keep its visible patches, in image order.

    Args:
        tokens: Patch tokens without the class token, `(B, L, D)`.
        bool_masked_pos: `(B, L)` bool (or 0 and 1), True is masked, the same number in every row.

    Returns:
        `x_masked` `(B, L_keep, D)`, `mask` and `ids_restore` `(B, L)`, like `random_masking`.

    Raises:
        ValueError: If the mask is not `(B, L)`, has values other than 0 and 1, masks all patches, or masks different
            numbers of patches in different rows.
    """
    batch, length, _ = tokens.shape
    if tuple(bool_masked_pos.shape) != (batch, length):
        raise ValueError(f"bool_masked_pos must have the shape {(batch, length)}, got {tuple(bool_masked_pos.shape)}")
    masked = bool_masked_pos.to(tokens.device)
    if masked.dtype != torch.bool:
        if not ((masked == 0) | (masked == 1)).all():
            values = masked.unique()[:5].tolist()
            raise ValueError(f"bool_masked_pos must be bool or contain only 0 and 1, got {values}")
        masked = masked.bool()
    visible = length - masked.sum(dim=1)  # B
    if (visible != visible[0]).any():
        counts = (length - visible).tolist()
        raise ValueError(f"bool_masked_pos must mask the same number of patches in every row, got {counts}")
    len_keep = int(visible[0])
    if len_keep < 1:
        raise ValueError(f"bool_masked_pos masks all {length} patches: leave at least one visible")
    order = torch.arange(length, device=tokens.device)
    return keep_smallest(tokens, order + length * masked, len_keep)  # masked patches sort behind all visible ones


def num_visible(num_patches: int, mask_ratio: float) -> int:
    """Return the number of patches that a mask ratio leaves visible, `int(num_patches * (1 - mask_ratio))`.

    Raises:
        ValueError: If `mask_ratio` is outside [0, 1) or leaves no patch visible.
    """
    if not 0 <= mask_ratio < 1:
        raise ValueError(f"mask_ratio must be in [0, 1), got {mask_ratio}")
    visible = int(num_patches * (1 - mask_ratio))
    if visible < 1:
        raise ValueError(f"mask_ratio {mask_ratio} leaves none of {num_patches} patches visible: choose a smaller one")
    return visible


def check_noise(noise: Tensor, batch: int, length: int) -> None:
    """Raise `ValueError` unless `noise` has the shape `(batch, length)` and contains no NaN, which cannot be sorted.

    NaN is checked on the CPU only: on a GPU, the check would synchronise with the device in every step.
    """
    if tuple(noise.shape) != (batch, length):
        raise ValueError(f"noise must have the shape {(batch, length)}, got {tuple(noise.shape)}")
    if not torch.compiler.is_compiling() and noise.device.type == "cpu" and noise.isnan().any():
        raise ValueError("noise must not contain NaN")


def keep_smallest(tokens: Tensor, noise: Tensor, len_keep: int) -> MaskingOutput:
    """Sort the tokens of each row by noise, `(B, L)`, and keep the first `len_keep`."""
    ids_shuffle = torch.argsort(noise, dim=1, stable=True)  # B L: shuffled order -> image order
    ids_restore = torch.argsort(ids_shuffle, dim=1)  # B L: image order -> shuffled order
    ids_keep = ids_shuffle[:, :len_keep]  # B L_keep
    x_masked = tokens.gather(1, ids_keep.unsqueeze(-1).expand(-1, -1, tokens.shape[2]))  # B L D -> B L_keep D
    mask = (ids_restore >= len_keep).float()  # B L
    return MaskingOutput(x_masked, mask, ids_restore)


def random_noise(
    batch_size: int,
    grid_size: tuple[int, int],
    mask_ratio: float = DEFAULT_MASK_RATIO,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw noise for `random_masking`, the "random" strategy of table 1f.

    Args:
        batch_size: `B`.
        grid_size: `(h, w)` in patches.
        mask_ratio: Not used here: pass the same `mask_ratio` to `forward`, which otherwise uses `config.mask_ratio`.
        generator: Random number generator; PyTorch's default one if None.

    Returns:
        The argument `noise` of `forward`, `(B, L)`, uniform in [0, 1).
    """
    return torch.rand(batch_size, math.prod(grid_size), generator=generator)


def block_masking(
    batch_size: int,
    grid_size: tuple[int, int],
    mask_ratio: float = DEFAULT_MASK_RATIO,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Mask random blocks, the "block-wise" strategy of table 1f, that of BEiT (Bao et al. 2021, algorithm 1).

    Rectangles of at least 16 patches with an aspect ratio between 0.3 and 1 / 0.3, cropped to the image, are masked
    until the ratio is reached. Of the last rectangle, only as many patches as needed are masked, row by row.

    Args:
        batch_size: `B`.
        grid_size: `(h, w)` in patches.
        mask_ratio: Fraction of patches to mask, in [0, 1); as many stay visible as with `random_masking`.
        generator: Random number generator; PyTorch's default one if None.

    Returns:
        The argument `bool_masked_pos` of `forward`, `(B, L)` bool, True is masked.

    Raises:
        ValueError: If `mask_ratio` is outside [0, 1) or leaves no patch visible.
    """
    num_patches = math.prod(grid_size)
    num_masked = num_patches - num_visible(num_patches, mask_ratio)
    return torch.stack([_mask_blocks(grid_size, num_masked, generator) for _ in range(batch_size)])


def _mask_blocks(grid_size: tuple[int, int], num_masked: int, generator: torch.Generator | None) -> Tensor:
    h, w = grid_size
    masked = torch.zeros(h, w, dtype=torch.bool)
    while (missing := num_masked - int(masked.sum())) > 0:
        area, aspect, down, across = torch.rand(4, generator=generator).tolist()
        area = _MIN_BLOCK + area * max(missing - _MIN_BLOCK, 0)
        aspect = math.exp((2 * aspect - 1) * math.log(1 / _MIN_ASPECT))
        height = min(h, round(math.sqrt(area * aspect)))
        width = min(w, round(math.sqrt(area / aspect)))
        top = int(down * (h - height + 1))
        left = int(across * (w - width + 1))
        block = torch.zeros_like(masked)
        block[top : top + height, left : left + width] = True
        new = (block & ~masked).nonzero()[:missing]  # no more than are still needed
        masked[new[:, 0], new[:, 1]] = True
    return masked.flatten()


def grid_masking(
    batch_size: int,
    grid_size: tuple[int, int],
    mask_ratio: float = DEFAULT_MASK_RATIO,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Keep one of every `s * s` patches on a regular grid, the "grid-wise" strategy of table 1f (there `s` is 2).

    Args:
        batch_size: `B`.
        grid_size: `(h, w)` in patches.
        mask_ratio: `1 - 1 / (s * s)` for an integer `s` from 1 to the shorter side of the grid, to within 0.001: 0,
            0.75, 0.889, 0.938, ... Where `s` does not divide a side, fewer patches are masked: 5 of 9 on a 3x3 grid
            with `s = 2`.
        generator: Not used: the mask is deterministic.

    Returns:
        The argument `bool_masked_pos` of `forward`, `(B, L)` bool, True is masked, the same in every row.

    Raises:
        ValueError: If `mask_ratio` is outside [0, 1), or is none of these ratios; the message lists the nearest.
    """
    step = _grid_step(grid_size, mask_ratio)
    masked = torch.ones(grid_size, dtype=torch.bool)
    masked[::step, ::step] = False
    return masked.flatten().repeat(batch_size, 1)


def _grid_step(grid_size: tuple[int, int], mask_ratio: float) -> int:
    """Return the distance `s` of the visible patches, for which `1 - 1 / (s * s)` is the mask ratio."""
    if not 0 <= mask_ratio < 1:
        raise ValueError(f"mask_ratio must be in [0, 1), got {mask_ratio}")
    h, w = grid_size
    step = min(round((1 - mask_ratio) ** -0.5), h, w)
    if abs(_grid_ratio(step) - mask_ratio) <= 1e-3:
        return step
    ratios = [_grid_ratio(s) for s in range(1, min(h, w) + 1)]
    below = max(ratio for ratio in ratios if ratio < mask_ratio)  # 0 is always possible
    above = [ratio for ratio in ratios if ratio > mask_ratio][:1]
    nearest = " and ".join(f"{ratio:.3g}" for ratio in (below, *above))
    raise ValueError(
        f"mask_ratio {mask_ratio} is not possible with grid masking on a {h}x{w} grid: "
        f"the nearest {'are' if above else 'is'} {nearest}"
    )


def _grid_ratio(step: int) -> float:
    return 1 - 1 / step**2


MaskFunction = Callable[[int, tuple[int, int], float, torch.Generator | None], Tensor]
"""Signature of a masking strategy: `(batch_size, grid_size, mask_ratio, generator)` to a mask or noise, `(B, L)`.

A mask is bool, True is masked, with the same number of masked patches in every row and every draw. Noise is floating
point; the patches with the smallest values stay visible. All randomness comes from `generator`.
"""

MASKS: dict[str, MaskFunction] = {"random": random_noise, "block": block_masking, "grid": grid_masking}
"""The masking strategies by name; `draw_masks` calls one of them."""


def draw_masks(
    strategy: str,
    batch_size: int,
    grid_size: tuple[int, int],
    mask_ratio: float,
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """Draw masks with the strategy of a name.

    Args:
        strategy: A key of `MASKS`.
        batch_size: `B`.
        grid_size: `(h, w)` in patches.
        mask_ratio: Fraction of patches to mask, in [0, 1).
        generator: Random number generator; PyTorch's default one if None.

    Returns:
        A keyword argument for the models' `forward`: `noise` `(B, L)`, to be passed with the same `mask_ratio`, or
        `bool_masked_pos` `(B, L)`.

    Raises:
        ValueError: If the strategy is unknown or rejects `mask_ratio`; "random" leaves this check to `forward`.
    """
    if strategy not in MASKS:
        raise ValueError(f"unknown masking strategy {strategy!r}; known: {', '.join(MASKS)}")
    masks = MASKS[strategy](batch_size, grid_size, mask_ratio, generator)
    return {"bool_masked_pos" if masks.dtype == torch.bool else "noise": masks}
