"""The pretraining loss: mean squared error on masked patches (He et al. 2021, section 3, "Reconstruction target").

Shapes: `B` batch, `L` patches, `P` patch side, `C` channels.
"""

import torch
from torch import Tensor


def patch_statistics(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the mean and standard deviation that normalise each patch.

    The variance is unbiased, and 1e-6 is added to it before the square root, as in the official code.

    Args:
        patches: `(B, L, P * P * C)`.

    Returns:
        Mean and standard deviation, each `(B, L, 1)`.

    Source: `MaskedAutoencoderViT.forward_loss` in facebookresearch/mae.
    """
    mean = patches.mean(dim=-1, keepdim=True)
    variance = patches.var(dim=-1, keepdim=True)
    return mean, (variance + 1e-6) ** 0.5


def reconstruction_loss(patches: Tensor, pred: Tensor, mask: Tensor, norm_pix_loss: bool) -> Tensor:
    """Compute the mean squared error over the masked patches, in float32 or a wider dtype.

    Args:
        patches: Patches of the images, `(B, L, P * P * C)`.
        pred: Predicted patches, `(B, L, P * P * C)`.
        mask: `(B, L)`, 1 masked, 0 visible.
        norm_pix_loss: Normalise each target patch by its own mean and standard deviation (table 1d).

    Returns:
        A scalar; NaN if no patch is masked.

    Source: `MaskedAutoencoderViT.forward_loss` in facebookresearch/mae.
    """
    target = patches.to(torch.promote_types(pred.dtype, torch.float32))
    if norm_pix_loss:
        mean, std = patch_statistics(target)
        target = (target - mean) / std
    error = ((pred - target) ** 2).mean(dim=-1)  # B L
    return (error * mask).sum() / mask.sum()
