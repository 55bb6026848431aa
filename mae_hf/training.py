"""Masks determined by seed, epoch and sample index; parameter groups for layer-wise learning rate decay.

`MAEForPreTraining` and `MAEForImageClassification` train with transformers' `Trainer` unchanged.
"""

import random
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .configuration_mae import MAEConfig
from .masking import draw_masks
from .pretrained import MAEPreTrainedModel


def seeded(*parts: int | str | None) -> random.Random:
    """Return a random number generator for one purpose, such as `seeded(seed, "mask", epoch, index)`.

    Equal parts give equal numbers in every process and on every machine; different parts give different numbers.
    """
    return random.Random("/".join(map(str, parts)))


class MaskingCollator:
    """Stack samples into a batch, and draw the mask of each sample from a seed, the epoch and the sample's index.

    Masks differ between samples and between epochs. They do not depend on the number of processes and workers, nor on
    whether a run was resumed.

    Args:
        config: Configuration of the model: its grid size and mask ratio.
        mask: Masking strategy, a key of `mae_hf.masking.MASKS`.
        seed: Seed of the masks.

    Raises:
        ValueError: If the strategy is unknown or rejects the mask ratio.
    """

    def __init__(self, config: MAEConfig, mask: str = "random", seed: int = 0) -> None:
        self.grid_size = config.grid_size
        self.mask_ratio = config.mask_ratio
        self.mask = mask
        self.seed = seed
        self._draw(epoch=None, index=0)  # so that a wrong argument fails here, not in a worker

    def __call__(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Return the arguments of `MAEForPreTraining.forward`.

        Args:
            samples: Each with "pixel_values" `(C, H, W)`, "index", its position in the dataset, and "epoch". If the
                epoch is None, as in evaluation, a sample has the same mask each time.

        Returns:
            "pixel_values" `(B, C, H, W)`, and the masks as the strategy returns them: "noise" `(B, L)`, or
            "bool_masked_pos" `(B, L)`, True is masked.
        """
        masks = [self._draw(sample["epoch"], sample["index"]) for sample in samples]
        return {
            "pixel_values": torch.stack([sample["pixel_values"] for sample in samples]),
            **{name: torch.cat([mask[name] for mask in masks]) for name in masks[0]},  # 1 L each -> B L
        }

    def _draw(self, epoch: int | None, index: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seeded(self.seed, "mask", epoch, index).getrandbits(63))
        return draw_masks(self.mask, 1, self.grid_size, self.mask_ratio, generator)


def layer_decay_groups(
    model: MAEPreTrainedModel, learning_rate: float, weight_decay: float = 0.05, layer_decay: float = 0.75
) -> list[dict[str, Any]]:
    """Return the parameter groups of layer-wise learning rate decay, for any PyTorch optimizer (appendix A.1).

    The head has the learning rate `learning_rate`, and each block `layer_decay` times the rate of the layer above it.
    Patch embedding, class token and position embeddings are the lowest layer. Vectors, the class token and the position
    embeddings have no weight decay. Frozen parameters are left out.

    Args:
        model: A `MAEForImageClassification`, or another model with a `MAEModel` in `mae`.
        learning_rate: Learning rate of the highest layer.
        weight_decay: Weight decay of all other parameters.
        layer_decay: Factor from one layer to the layer below, in (0, 1]; 1 disables the decay.

    Returns:
        Groups with "params", "lr" and "weight_decay". Those of the highest layer come first: the first group's rate is
        the one that is logged.

    Raises:
        ValueError: If `layer_decay` is outside (0, 1].

    Source: `param_groups_lrd` in util/lr_decay.py of facebookresearch/mae.
    """
    if not 0 < layer_decay <= 1:
        raise ValueError(f"layer_decay must be in (0, 1], got {layer_decay}")
    top = model.config.num_hidden_layers + 1
    members: dict[tuple[int, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        name = name.removeprefix("mae.")
        if parameter.requires_grad:
            decay = 0.0 if parameter.ndim == 1 or name in ("cls_token", "pos_embed") else weight_decay
            members.setdefault((_layer(name, top), decay), []).append(parameter)
    return [
        {"params": parameters, "lr": learning_rate * layer_decay ** (top - layer), "weight_decay": decay}
        for (layer, decay), parameters in sorted(members.items(), key=lambda group: group[0], reverse=True)
    ]


def _layer(name: str, top: int) -> int:
    """Return 0 for parameters below the blocks, 1 to depth for those of the blocks, `top` for those above them."""
    if name.startswith(("cls_token", "pos_embed", "patch_embed.")):
        return 0
    return int(name.split(".")[2]) + 1 if name.startswith("encoder.blocks.") else top
