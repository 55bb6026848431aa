"""From a model and an image to a figure (He et al. 2021, figures 2 to 4).

Shapes: `L` patches, `H W` pixels.
"""

import math
from collections.abc import Sequence
from os import PathLike
from typing import Any, NamedTuple

import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor

from .decoder import NO_DECODER
from .image_processor import image_processor
from .loss import patch_statistics
from .masking import draw_masks
from .modeling_mae import MAEForPreTraining
from .patch_embed import patchify, unpatchify

NORMALISED_NOTE = (
    "the model predicts per-patch normalised pixels: shown with the mean and standard deviation of each original patch"
)
_GAP = 8  # pixels between panels
_PANEL = 224  # smallest width of a panel, in pixels
_MAX_ASPECT = 1000  # longer side of an image divided by the shorter one


class Reconstruction(NamedTuple):
    """Four versions of one image, all of the model's image size."""

    original: Image.Image
    masked: Image.Image
    reconstruction: Image.Image
    pasted: Image.Image
    """The reconstruction in the masked patches, the original in the visible ones."""


def open_image(image: Image.Image | str | PathLike[str]) -> Image.Image:
    """Open an image file, or take an open image; apply its EXIF orientation and convert it to RGB.

    Args:
        image: PIL image or file name.

    Returns:
        An RGB image.

    Raises:
        ValueError: If Pillow cannot read the file, the image has more than 8 bits per channel, or its longer side is
            more than 1000 times the shorter one.
        OSError: If the file does not exist.
    """
    if isinstance(image, Image.Image):
        return _to_rgb(image)
    if not isinstance(image, (str, PathLike)):
        raise ValueError(f"image must be a PIL image or a file name, got {type(image).__name__}")
    try:
        with Image.open(image) as opened:
            opened.load()
            return _to_rgb(opened)
    except ValueError as error:
        raise ValueError(f"{image} is not supported: {error}") from error
    except FileNotFoundError:
        raise
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{image} cannot be read as an image: {error}") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    size = f"{image.width}x{image.height} pixels"
    if image.mode.startswith(("I", "F")):  # Pillow would clip the values silently
        raise ValueError(f"an image of mode {image.mode} has more than 8 bits per channel: convert it to 8 bits first")
    if 0 in image.size:
        raise ValueError(f"an image of {size} is empty")
    if max(image.size) > _MAX_ASPECT * min(image.size):  # resizing it would need gigabytes
        raise ValueError(f"an image of {size} is too thin: crop it first")
    image = ImageOps.exif_transpose(image)
    if "transparency" in image.info:  # a transparent colour: kept in `info`, the image processor would make it white
        image = image.convert("RGBA")
    return image.convert("RGB")


@torch.no_grad()
def reconstruct(
    model: MAEForPreTraining,
    image: Image.Image | str | PathLike[str],
    *,
    mask_ratio: float | None = None,
    mask: str = "random",
    seed: int = 0,
    processor: Any = None,
) -> Reconstruction:
    """Mask patches of an image and let the model predict them.

    A model trained with `norm_pix_loss` predicts per-patch normalised pixels: patches without their brightness and
    contrast. They are shown with the mean and standard deviation of the original patches, although the model does not
    see those of masked patches.

    Args:
        model: Model with a trained decoder, for images of three channels.
        image: PIL image or file name, of any size.
        mask_ratio: Fraction of patches to mask, in [0, 1); `model.config.mask_ratio` if None.
        mask: Masking strategy, a key of `mae_hf.masking.MASKS`: "random", "block" or "grid" (table 1f).
        seed: Seed of the mask.
        processor: Image processor; `image_processor(model.config)` if None.

    Returns:
        The original, the masked image, the reconstruction, and the reconstruction with the original visible patches
        pasted in.

    Raises:
        ValueError: If the model has no decoder, an untrained one (because it was loaded from encoder-only weights), or
            a number of channels other than three; if the image cannot be read, or an argument is invalid.
        OSError: If the image file does not exist.
    """
    config = model.config
    _check_model(model)
    processor = image_processor(config) if processor is None else processor
    pixels = processor(open_image(image), return_tensors="pt")["pixel_values"].to(model.device)  # 1 3 H W
    ratio = config.mask_ratio if mask_ratio is None else mask_ratio
    masks = draw_masks(mask, 1, config.grid_size, ratio, torch.Generator().manual_seed(seed))

    was_training = model.training
    model.eval()
    try:
        out = model(pixels, mask_ratio=ratio, **{name: value.to(model.device) for name, value in masks.items()})
    finally:
        model.train(was_training)

    predicted = out.logits.float()  # 1 L P*P*3
    if config.norm_pix_loss:
        mean, std = patch_statistics(patchify(pixels.float(), config.patch_size))
        predicted = predicted * std + mean
    filled = unpatchify(predicted, config.patch_size, config.image_size)  # 1 L P*P*3 -> 1 3 H W
    masked = out.mask.unsqueeze(-1).expand_as(predicted)  # 1 L -> 1 L P*P*3
    masked = unpatchify(masked, config.patch_size, config.image_size)  # 1 L P*P*3 -> 1 3 H W
    images = (pixels, pixels * (1 - masked), filled, torch.where(masked.bool(), filled, pixels))
    return Reconstruction(*(_to_image(image[0], processor) for image in images))


def _check_model(model: MAEForPreTraining) -> None:
    if not isinstance(model, MAEForPreTraining):
        raise ValueError(f"model must be a MAEForPreTraining, which has a decoder, got {type(model).__name__}")
    loaded_from = model.config.architectures or ["MAEForPreTraining"]
    if "MAEForPreTraining" not in loaded_from and model.decoder.is_untrained:
        raise ValueError(f"the decoder of this model is untrained: the model was loaded from {NO_DECODER}")
    if (channels := model.config.num_channels) != 3:
        raise ValueError(f"the model must have 3 channels, got {channels}: call model.unpatchify on its logits instead")


def _to_image(pixels: Tensor, processor: Any) -> Image.Image:
    """Undo the normalisation of `(3, H, W)` and round to bytes."""
    mean = torch.tensor(processor.image_mean, device=pixels.device).view(3, 1, 1)
    std = torch.tensor(processor.image_std, device=pixels.device).view(3, 1, 1)
    values = ((pixels * std + mean).clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(values.permute(1, 2, 0).cpu().numpy())  # 3 H W -> H W 3


def draw_panels(rows: Sequence[Reconstruction], labels: Sequence[str], note: str = "") -> Image.Image:
    """Draw reconstructions in one figure, a row per image, with a label above each column and a note below.

    Args:
        rows: One reconstruction per row, all of the same size.
        labels: One label per column.
        note: A line of text below the rows.

    Returns:
        The figure; panels less than 224 pixels wide are enlarged by an integer factor.
    """
    original = rows[0].original
    factor = math.ceil(_PANEL / original.width)
    width = original.width * factor
    height = original.height * factor
    font = ImageFont.load_default(size=14)
    line = 14 + _GAP
    foot = line if note else 0
    size = (_GAP + len(labels) * (width + _GAP), line + _GAP + len(rows) * (height + _GAP) + foot)
    figure = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(figure)
    for column, label in enumerate(labels):
        left = _GAP + column * (width + _GAP)
        draw.text((left, _GAP // 2), label, fill="black", font=font)
        for number, row in enumerate(rows):
            panel = row[column].resize((width, height), Image.Resampling.NEAREST)
            figure.paste(panel, (left, line + _GAP // 2 + number * (height + _GAP)))
    if note:
        draw.text((_GAP, size[1] - line), note, fill="black", font=font)
    return figure
