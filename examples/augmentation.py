"""The augmentation of the official MAE training, without torchvision and timm.

Pretraining has `random_resized_crop` (with scale=(0.2, 1)) and a mirror image; fine-tuning has `random_resized_crop`,
a mirror image, `rand_augment`, and once the pixels are normalised `random_erasing` of an image and `mix` of a batch.
Every random number is from the `random.Random` that is given: the same seed gives the same result.
"""

import math
import random

import torch
from PIL import Image, ImageEnhance, ImageOps

BICUBIC = Image.Resampling.BICUBIC
TRIES = 10  # for a rectangle that fits
Range = tuple[float, float]  # least and largest
Box = tuple[int, int, int, int]  # left, top, right, bottom


def random_resized_crop(
    image: Image.Image,
    size: tuple[int, int],
    rng: random.Random,
    scale: Range = (0.08, 1.0),
    ratio: Range = (3 / 4, 4 / 3),
) -> Image.Image:
    """RandomResizedCrop of torchvision, bicubic.

    Args:
        size: (height, width) of the result.
        scale: Area of the crop as a share of the image.
        ratio: Width / height of the crop.
    """
    height, width = size
    return image.crop(crop_box(*image.size, rng, scale, ratio)).resize((width, height), BICUBIC)


def crop_box(width: int, height: int, rng: random.Random, scale: Range, ratio: Range) -> Box:
    """A random box, or if none was found the largest central one that `ratio` permits."""
    box = random_box(width, height, rng, scale, ratio)
    if box is not None:
        return box
    crop_width = min(width, round(height * ratio[1]))
    crop_height = min(height, round(width / ratio[0]))
    left, top = (width - crop_width) // 2, (height - crop_height) // 2
    return left, top, left + crop_width, top + crop_height


def random_box(width: int, height: int, rng: random.Random, area: Range, aspect: Range, margin: int = 0) -> Box | None:
    """A random box of uniform area (a share of the image) and log-uniform width / height, None if none was found.

    In both directions it is smaller than the image by `margin` or more.
    """
    for _ in range(TRIES):
        pixels = rng.uniform(*area) * width * height
        shape = math.exp(rng.uniform(math.log(aspect[0]), math.log(aspect[1])))
        box_width, box_height = round(math.sqrt(pixels * shape)), round(math.sqrt(pixels / shape))
        if 0 < box_width <= width - margin and 0 < box_height <= height - margin:
            top, left = rng.randint(0, height - box_height), rng.randint(0, width - box_width)
            return left, top, left + box_width, top + box_height
    return None


def affine(image: Image.Image, fill: tuple[int, int, int], *matrix: float) -> Image.Image:
    """The image read at matrix @ (x, y, 1), with `fill` where that is outside of it."""
    return image.transform(image.size, Image.Transform.AFFINE, matrix, BICUBIC, fillcolor=fill)


def posterize(image: Image.Image, bits: int) -> Image.Image:
    """The highest `bits` of each value. 0 bits are black; ImageOps.posterize of a new Pillow refuses them."""
    return image.point([value & -(256 >> bits) for value in range(256)] * len(image.getbands()))


def solarize_add(image: Image.Image, amount: int) -> Image.Image:
    """`amount`, at most 110, more in the values below 128."""
    table = [value + amount if value < 128 else value for value in range(256)]
    return image.point(table * len(image.getbands()))


def enhance(image: Image.Image, enhancer: type, strength: float) -> Image.Image:
    """A colour, contrast, brightness or sharpness of 1 + 0.9 * strength, at least 0.1 (1 is that of the image)."""
    return enhancer(image).enhance(max(0.1, 1 + 0.9 * strength))


# operation(image, strength, fill): a strength of -1 to 1, those without a direction use its absolute value
OPERATIONS = {
    "AutoContrast": lambda image, strength, fill: ImageOps.autocontrast(image),
    "Equalize": lambda image, strength, fill: ImageOps.equalize(image),
    "Invert": lambda image, strength, fill: ImageOps.invert(image),
    "Rotate": lambda image, strength, fill: image.rotate(30 * strength, BICUBIC, fillcolor=fill),
    "Posterize": lambda image, strength, fill: posterize(image, 4 - int(4 * abs(strength))),
    "Solarize": lambda image, strength, fill: ImageOps.solarize(image, 256 - int(256 * abs(strength))),
    "SolarizeAdd": lambda image, strength, fill: solarize_add(image, int(110 * abs(strength))),
    "Color": lambda image, strength, fill: enhance(image, ImageEnhance.Color, strength),
    "Contrast": lambda image, strength, fill: enhance(image, ImageEnhance.Contrast, strength),
    "Brightness": lambda image, strength, fill: enhance(image, ImageEnhance.Brightness, strength),
    "Sharpness": lambda image, strength, fill: enhance(image, ImageEnhance.Sharpness, strength),
    "ShearX": lambda image, strength, fill: affine(image, fill, 1, 0.3 * strength, 0, 0, 1, 0),
    "ShearY": lambda image, strength, fill: affine(image, fill, 1, 0, 0, 0.3 * strength, 1, 0),
    "TranslateX": lambda image, strength, fill: affine(image, fill, 1, 0, 0.45 * strength * image.width, 0, 1, 0),
    "TranslateY": lambda image, strength, fill: affine(image, fill, 1, 0, 0, 0, 1, 0.45 * strength * image.height),
}


def rand_augment(
    image: Image.Image,
    rng: random.Random,
    layers: int = 2,
    magnitude: float = 9,
    deviation: float = 0.5,
    fill: tuple[int, int, int] = (124, 116, 104),
) -> Image.Image:
    """timm's rand-m9-mstd0.5-inc1 of an RGB image, bicubic: `layers` random operations, each left out by a coin.

    Args:
        magnitude: 0 to 10, the mean of a normal distribution of standard deviation `deviation`.
        fill: Colour of what comes in from outside of the image, the mean of ImageNet.
    """
    for name in rng.choices(tuple(OPERATIONS), k=layers):
        if rng.random() < 0.5:
            strength = min(max(rng.gauss(magnitude, deviation), 0), 10) / 10
            image = OPERATIONS[name](image, rng.choice((-1, 1)) * strength, fill)
    return image


def random_erasing(
    pixels: torch.Tensor,
    rng: random.Random,
    probability: float = 0.25,
    area: Range = (0.02, 1 / 3),
    aspect: float = 0.3,
) -> torch.Tensor:
    """timm's RandomErasing in mode "pixel": a rectangle of a normalised (C, H, W) replaced by normal noise, in a copy.

    Args:
        area: Share of the image.
        aspect: Least width / height of the rectangle; the largest is 1 / aspect.
    """
    if rng.random() >= probability:
        return pixels
    channels, height, width = pixels.shape
    box = random_box(width, height, rng, area, (aspect, 1 / aspect), margin=1)
    if box is None:
        return pixels
    left, top, right, bottom = box
    generator = torch.Generator().manual_seed(rng.getrandbits(63))
    erased = pixels.clone()
    erased[:, top:bottom, left:right] = torch.randn(channels, bottom - top, right - left, generator=generator)
    return erased


def mix(
    pixel_values: torch.Tensor,
    labels: torch.Tensor,
    num_labels: int,
    rng: random.Random,
    mixup: float = 0.8,
    cutmix: float = 1.0,
    switch: float = 0.5,
    smoothing: float = 0.1,
) -> tuple[torch.Tensor, torch.Tensor]:
    """timm's Mixup in mode "batch": the first image mixed with the last, the second with the last but one.

    Args:
        pixel_values: (B, C, H, W), any B.
        labels: (B,) integers below `num_labels`.
        mixup: Alpha of the Beta distribution of the share, 0 for no mixup.
        cutmix: Likewise of cutmix; 0 for both leaves the images as they are.
        switch: Probability of cutmix if neither is off.
        smoothing: What the labels give away to all the classes.

    Returns:
        The mixed images and their targets, float32 (B, num_labels) of sum 1.
    """
    partners, targets = pixel_values.flip(0), smoothed(labels, num_labels, smoothing)
    cut = cutmix > 0 and (mixup <= 0 or rng.random() < switch)
    alpha = cutmix if cut else mixup
    share = rng.betavariate(alpha, alpha) if alpha > 0 else 1.0  # of the image itself
    if cut:
        height, width = pixel_values.shape[-2:]
        (top, bottom), (left, right) = cut_span(height, share, rng), cut_span(width, share, rng)
        mixed = pixel_values.clone()
        mixed[..., top:bottom, left:right] = partners[..., top:bottom, left:right]
        share = 1 - (bottom - top) * (right - left) / (height * width)
    else:
        mixed = pixel_values * share + partners * (1 - share)
    return mixed, targets * share + targets.flip(0) * (1 - share)


def cut_span(length: int, share: float, rng: random.Random) -> tuple[int, int]:
    """First and end of the cut rows or columns: sqrt(1 - share) of them around a random one, clipped at the border."""
    cut, centre = int(length * math.sqrt(1 - share)), rng.randrange(length)
    return max(centre - cut // 2, 0), min(centre + cut // 2, length)


def smoothed(labels: torch.Tensor, num_labels: int, smoothing: float) -> torch.Tensor:
    """float32 (B, num_labels): smoothing / num_labels everywhere, and 1 - smoothing more at the label."""
    targets = torch.full((len(labels), num_labels), smoothing / num_labels, device=labels.device)
    return targets.scatter_(1, labels.long().unsqueeze(1), 1 - smoothing + smoothing / num_labels)
