"""What training needs beside a model: noise that belongs to the sample, and the groups of layer-wise decay.

`MAEForPreTraining` and `MAEForImageClassification` train with transformers' `Trainer` as they are; examples/pretrain.py
and examples/finetune.py of the repository do so with the official recipes.
"""

import random
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .pretrained import MAEPreTrainedModel


def seeded(*parts: int | str | None) -> random.Random:
    """Make a source of randomness from what it is for: `seeded(seed, "mask", epoch, index)`.

    The same parts give the same numbers in every process, on every machine; other parts give others.
    """
    return random.Random("/".join(map(str, parts)))


class MaskingCollator:
    """Stack samples to a batch, with the masking noise of each drawn from a seed, the epoch and its index.

    Masks then differ between images and between epochs, and are the same however many processes and workers share the
    work, and when a run is resumed.

    Args:
        num_patches: `L`, the patches of an image.
        seed: Another seed gives other masks.
    """

    def __init__(self, num_patches: int, seed: int = 0) -> None:
        self.num_patches, self.seed = num_patches, seed

    def __call__(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Make the arguments of `MAEForPreTraining.forward`.

        Args:
            samples: Each with "pixel_values" `(C, H, W)`, "index", its place in the dataset, and "epoch"; with None for
                the epoch, as in evaluation, an image has the same mask each time.

        Returns:
            "pixel_values" `(B, C, H, W)` and "noise" `(B, L)`, uniform in [0, 1).
        """
        return {
            "pixel_values": torch.stack([sample["pixel_values"] for sample in samples]),
            "noise": torch.stack([self._noise(sample["epoch"], sample["index"]) for sample in samples]),
        }

    def _noise(self, epoch: int | None, index: int) -> Tensor:
        generator = torch.Generator().manual_seed(seeded(self.seed, "mask", epoch, index).getrandbits(63))
        return torch.rand(self.num_patches, generator=generator)


def layer_decay_groups(
    model: MAEPreTrainedModel, learning_rate: float, weight_decay: float = 0.05, layer_decay: float = 0.75
) -> list[dict[str, Any]]:
    """Make the parameter groups of layer-wise decay, for any optimizer of PyTorch (appendix A.1).

    The head learns with `learning_rate`, and each block below it with `layer_decay` times the rate of the one above;
    patch embedding, class token and positions are the lowest layer. Vectors, the class token and the positions are
    free of weight decay, and frozen parameters are left out.

    Args:
        model: A `MAEForImageClassification`, or another model with a `MAEModel` in `mae`.
        learning_rate: Of the highest layer.
        weight_decay: Of what decays.
        layer_decay: Factor from one layer to the next one below, in (0, 1]; 1 is none.

    Returns:
        Groups with "params", "lr" and "weight_decay", those of the highest layer first: its rate is the one logged.

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
    """0 for what comes before the blocks, 1 to depth for the blocks, `top` for what comes after them."""
    if name.startswith(("cls_token", "pos_embed", "patch_embed.")):
        return 0
    return int(name.split(".")[2]) + 1 if name.startswith("encoder.blocks.") else top
