"""From a model and an image to pictures (He et al. 2021, figures 2 to 4).

Shapes: `L` patches, `h w` patches down and across, `H W` pixels.
"""

import math
from collections.abc import Sequence
from os import PathLike
from typing import Any, NamedTuple

import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor

from .configuration_mae import unknown_name
from .image_processor import image_processor
from .masking import block_masking, grid_masking
from .modeling_mae import NO_DECODER, MAEForPreTraining
from .patch_embed import patch_statistics, patchify, unpatchify

MASKS = ("random", "block", "grid")
NORMALISED_NOTE = "model of normalised pixels: shown with the mean and deviation of each patch of the original"
_GAP, _PANEL = 8, 224  # pixels of the picture
_MAX_ASPECT = 1000  # the longer side of an image by the shorter one


class Reconstruction(NamedTuple):
    """Four pictures of one image, all of the model's image size."""

    original: Image.Image
    masked: Image.Image
    reconstruction: Image.Image
    pasted: Image.Image
    """The reconstruction in the hidden patches, the original in the visible ones."""


def open_image(image: Image.Image | str | PathLike[str]) -> Image.Image:
    """Open an image file, or take an open one; turned as its EXIF data say, in RGB.

    Raises:
        ValueError: If the file is no image that Pillow can read, has more than 8 bits a channel, or is more than a
            thousand times as long as wide.
        OSError: If there is no such file.
    """
    if isinstance(image, Image.Image):
        if image.mode.startswith(("I", "F")):  # Pillow would clip them, without a word
            raise ValueError(f"an image of mode {image.mode} has more than 8 bits a channel: convert it to 8 first")
        if 0 in image.size:
            raise ValueError(f"an image of {image.width}x{image.height} pixels has none")
        if max(image.size) > _MAX_ASPECT * min(image.size):  # resizing it would take gigabytes
            raise ValueError(f"an image of {image.width}x{image.height} pixels is too thin: crop it to what matters")
        image = ImageOps.exif_transpose(image)
        if "transparency" in image.info:  # of a colour: it is shown as it is, and the processor does not make it white
            image = image.convert("RGBA")
        return image.convert("RGB")
    if not isinstance(image, str | PathLike):
        raise ValueError(f"image must be a PIL image or a file name, got {type(image).__name__}")
    try:
        with Image.open(image) as opened:
            opened.load()
            return open_image(opened)
    except ValueError as error:
        raise ValueError(f"{image} is not taken: {error}") from error
    except FileNotFoundError:
        raise
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{image} is no image that can be read: {error}") from error


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
    """Hide patches of an image and let the model fill them in.

    A model of normalised pixels predicts patches without their brightness and contrast: its output is shown with the
    mean and the deviation that the patches have in the original, which a hidden patch would not tell.

    Args:
        model: With a trained decoder, for images of three channels.
        image: PIL image or file name, of any size.
        mask_ratio: Share of patches to hide, in [0, 1); `model.config.mask_ratio` if None.
        mask: "random", "block" or "grid" (Table 1f).
        seed: Of the mask; the same seed hides the same patches.
        processor: Image processor; `image_processor(model.config)` if None.

    Returns:
        Original, masked, reconstruction, and reconstruction pasted into the visible patches.

    Raises:
        ValueError: If the model is an encoder only, or was loaded from one and its decoder is untrained, or takes other
            than three channels; if the image cannot be read, or an argument is wrong.
    """
    if not isinstance(model, MAEForPreTraining):
        raise ValueError(f"reconstruct needs a MAEForPreTraining, with a decoder, got {type(model).__name__}")
    config = model.config
    loaded_from = config.architectures or ["MAEForPreTraining"]
    if "MAEForPreTraining" not in loaded_from and not model.decoder.pred.bias.any():  # zero until it is trained
        raise ValueError(f"the decoder of this model is untrained: it was loaded from {NO_DECODER}")
    if config.num_channels != 3:
        raise ValueError(
            f"pictures need 3 channels, the model takes {config.num_channels}: use model.unpatchify on its logits"
        )
    processor = image_processor(config) if processor is None else processor
    pixels = processor(open_image(image), return_tensors="pt")["pixel_values"].to(model.device)  # 1 3 H W
    ratio = config.mask_ratio if mask_ratio is None else mask_ratio
    masking = _masking(mask, ratio, config.grid_size, seed)

    was_training = model.training
    model.eval()
    try:
        out = model(pixels, mask_ratio=ratio, **{name: value.to(model.device) for name, value in masking.items()})
    finally:
        model.train(was_training)

    predicted = out.logits.float()  # 1 L P*P*3
    if config.norm_pix_loss:
        mean, deviation = patch_statistics(patchify(pixels.float(), config.patch_size))
        predicted = predicted * deviation + mean
    filled = unpatchify(predicted, config.patch_size, config.image_size)  # 1 3 H W
    hidden = out.mask.unsqueeze(-1).expand_as(predicted)
    hidden = unpatchify(hidden, config.patch_size, config.image_size)  # 1 3 H W
    pictures = (pixels, pixels * (1 - hidden), filled, torch.where(hidden.bool(), filled, pixels))
    return Reconstruction(*(_to_picture(picture[0], processor) for picture in pictures))


def _masking(mask: str, mask_ratio: float, grid_size: tuple[int, int], seed: int) -> dict[str, Tensor]:
    """The keyword argument that makes the model hide the wanted patches."""
    generator = torch.Generator().manual_seed(seed)
    if mask == "random":
        return {"noise": torch.rand(1, math.prod(grid_size), generator=generator)}
    if mask == "block":
        return {"bool_masked_pos": block_masking(1, grid_size, mask_ratio, generator)}
    if mask == "grid":
        return {"bool_masked_pos": grid_masking(1, grid_size, mask_ratio)}
    raise unknown_name("mask", mask, MASKS)


def _to_picture(pixels: Tensor, processor: Any) -> Image.Image:
    """Undo the normalisation of `(3, H, W)` and round to bytes."""
    mean, deviation = (
        torch.tensor(value, device=pixels.device).view(3, 1, 1) for value in (processor.image_mean, processor.image_std)
    )
    values = ((pixels * deviation + mean).clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(values.permute(1, 2, 0).cpu().numpy())  # 3 H W -> H W 3


def draw_panels(rows: Sequence[Reconstruction], labels: Sequence[str], note: str = "") -> Image.Image:
    """Draw reconstructions below each other in one picture, with a label above each column and a note at the foot.

    Args:
        rows: One an image, all of one size.
        labels: One a column.
        note: A line below the rows.

    Returns:
        The picture; panels smaller than 224 pixels are enlarged by a whole factor.
    """
    width, height = rows[0].original.size
    factor = math.ceil(_PANEL / width)
    width, height = width * factor, height * factor
    font = ImageFont.load_default(size=14)
    line = 14 + _GAP
    foot = line if note else 0
    size = (_GAP + len(labels) * (width + _GAP), line + _GAP + len(rows) * (height + _GAP) + foot)
    picture = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(picture)
    for column, label in enumerate(labels):
        left = _GAP + column * (width + _GAP)
        draw.text((left, _GAP // 2), label, fill="black", font=font)
        for number, row in enumerate(rows):
            panel = row[column].resize((width, height), Image.Resampling.NEAREST)
            picture.paste(panel, (left, line + _GAP // 2 + number * (height + _GAP)))
    if note:
        draw.text((_GAP, size[1] - line), note, fill="black", font=font)
    return picture
