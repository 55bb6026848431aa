"""The augmentation of the official MAE training, without torchvision and timm.

Pretraining uses `random_resized_crop` (with scale=(0.2, 1)) and a horizontal flip. Fine-tuning uses
`random_resized_crop`, a horizontal flip and `rand_augment`, then, after normalisation by ImageNet's mean and standard
deviation, `random_erasing` for each image and `mix` for each batch. Every random number comes from the `random.Random`
argument: the same seed gives the same result.
"""

import math
import random

import torch
from PIL import Image, ImageEnhance, ImageOps

BICUBIC = Image.Resampling.BICUBIC
TRIES = 10  # attempts to draw a box that fits
Range = tuple[float, float]  # minimum, maximum
Box = tuple[int, int, int, int]  # left, top, right, bottom


def random_resized_crop(
    image: Image.Image,
    size: tuple[int, int],
    rng: random.Random,
    scale: Range = (0.08, 1.0),
    ratio: Range = (3 / 4, 4 / 3),
) -> Image.Image:
    """Crop a random box and resize it, like torchvision's RandomResizedCrop with bicubic interpolation.

    Args:
        image: Image of any size.
        size: (height, width) of the result in pixels.
        rng: Random number generator.
        scale: Range of the area of the crop, as a fraction of the image.
        ratio: Range of the aspect ratio of the crop, width / height.
    """
    height, width = size
    return image.crop(crop_box(*image.size, rng, scale, ratio)).resize((width, height), BICUBIC)


def crop_box(width: int, height: int, rng: random.Random, scale: Range, ratio: Range) -> Box:
    """Return a random box; if none was found, the largest centred box that `ratio` allows."""
    box = random_box(width, height, rng, scale, ratio)
    if box is not None:
        return box
    crop_width = min(width, round(height * ratio[1]))
    crop_height = min(height, round(width / ratio[0]))
    left = (width - crop_width) // 2
    top = (height - crop_height) // 2
    return left, top, left + crop_width, top + crop_height


def random_box(width: int, height: int, rng: random.Random, area: Range, aspect: Range, margin: int = 0) -> Box | None:
    """Return a random box with uniform area and log-uniform aspect ratio, or None if none was found.

    Args:
        width: Width of the image in pixels.
        height: Height of the image in pixels.
        rng: Random number generator.
        area: Range of the area, as a fraction of the image.
        aspect: Range of the aspect ratio, width / height.
        margin: Minimum difference between the sides of the image and those of the box, in pixels.
    """
    for _ in range(TRIES):
        pixels = rng.uniform(*area) * width * height
        shape = math.exp(rng.uniform(math.log(aspect[0]), math.log(aspect[1])))
        box_width = round(math.sqrt(pixels * shape))
        box_height = round(math.sqrt(pixels / shape))
        if 0 < box_width <= width - margin and 0 < box_height <= height - margin:
            top = rng.randint(0, height - box_height)
            left = rng.randint(0, width - box_width)
            return left, top, left + box_width, top + box_height
    return None


def affine(image: Image.Image, fill: tuple[int, int, int], *matrix: float) -> Image.Image:
    """Sample the image at matrix @ (x, y, 1); positions outside of the image get the colour `fill`."""
    return image.transform(image.size, Image.Transform.AFFINE, matrix, BICUBIC, fillcolor=fill)


def posterize(image: Image.Image, bits: int) -> Image.Image:
    """Keep the highest `bits` bits of each value. 0 gives black; `ImageOps.posterize` of recent Pillow rejects it."""
    return image.point([value & -(256 >> bits) for value in range(256)] * len(image.getbands()))


def solarize_add(image: Image.Image, amount: int) -> Image.Image:
    """Add `amount`, at most 110, to the values below 128."""
    table = [value + amount if value < 128 else value for value in range(256)]
    return image.point(table * len(image.getbands()))


def enhance(image: Image.Image, enhancer: type, strength: float) -> Image.Image:
    """Apply a Pillow enhancer with factor 1 + 0.9 * strength, at least 0.1; factor 1 leaves the image unchanged."""
    return enhancer(image).enhance(max(0.1, 1 + 0.9 * strength))


# operation(image, strength, fill), strength in [-1, 1]; operations without a direction use its absolute value
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
    magnitude_std: float = 0.5,
    fill: tuple[int, int, int] = (124, 116, 104),
) -> Image.Image:
    """Apply timm's rand-m9-mstd0.5-inc1: `layers` random operations, each skipped with probability 0.5.

    Args:
        image: RGB image; interpolation is bicubic.
        rng: Random number generator.
        layers: Number of operations.
        magnitude: Mean of the normal distribution of the magnitude, 0 to 10.
        magnitude_std: Standard deviation of the magnitude.
        fill: Colour of the pixels that an operation moves in from outside of the image; the mean of ImageNet.
    """
    for name in rng.choices(tuple(OPERATIONS), k=layers):
        if rng.random() < 0.5:
            strength = min(max(rng.gauss(magnitude, magnitude_std), 0), 10) / 10
            image = OPERATIONS[name](image, rng.choice((-1, 1)) * strength, fill)
    return image


def random_erasing(
    pixels: torch.Tensor,
    rng: random.Random,
    probability: float = 0.25,
    area: Range = (0.02, 1 / 3),
    aspect: float = 0.3,
) -> torch.Tensor:
    """Replace a rectangle by normal noise, like timm's RandomErasing in mode "pixel"; the input is not modified.

    Args:
        pixels: Normalised image, `(C, H, W)`.
        rng: Random number generator.
        probability: Probability of erasing.
        area: Range of the area of the rectangle, as a fraction of the image.
        aspect: Minimum aspect ratio of the rectangle, width / height; the maximum is 1 / aspect.
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
    """Apply mixup or cutmix, like timm's Mixup in mode "batch": image i is mixed with image B - 1 - i.

    Args:
        pixel_values: `(B, C, H, W)`, any B.
        labels: `(B,)` integers in [0, num_labels).
        num_labels: Number of classes.
        rng: Random number generator.
        mixup: Alpha of the Beta distribution of the mixing ratio; 0 disables mixup.
        cutmix: Alpha for cutmix; 0 disables cutmix. If both are 0, the images stay as they are.
        switch: Probability of cutmix if both are enabled.
        smoothing: Label smoothing, in [0, 1).

    Returns:
        The mixed images `(B, C, H, W)` and their targets `(B, num_labels)`, float32; each row of the targets sums to 1.
    """
    partners = pixel_values.flip(0)
    targets = smoothed(labels, num_labels, smoothing)
    cut = cutmix > 0 and (mixup <= 0 or rng.random() < switch)
    alpha = cutmix if cut else mixup
    ratio = rng.betavariate(alpha, alpha) if alpha > 0 else 1.0  # fraction that an image keeps of itself
    if cut:
        height, width = pixel_values.shape[-2:]
        top, bottom = cut_span(height, ratio, rng)
        left, right = cut_span(width, ratio, rng)
        mixed = pixel_values.clone()
        mixed[..., top:bottom, left:right] = partners[..., top:bottom, left:right]
        ratio = 1 - (bottom - top) * (right - left) / (height * width)
    else:
        mixed = pixel_values * ratio + partners * (1 - ratio)
    return mixed, targets * ratio + targets.flip(0) * (1 - ratio)


def cut_span(length: int, ratio: float, rng: random.Random) -> tuple[int, int]:
    """Return the first row or column of a cut and its end.

    The cut is a fraction sqrt(1 - ratio) of the length around a uniformly random centre, clipped at the border.
    """
    cut = int(length * math.sqrt(1 - ratio))
    centre = rng.randrange(length)
    return max(centre - cut // 2, 0), min(centre + cut // 2, length)


def smoothed(labels: torch.Tensor, num_labels: int, smoothing: float) -> torch.Tensor:
    """Return smoothed one-hot labels, `(B, num_labels)` float32.

    Every class has smoothing / num_labels, and the label has 1 - smoothing in addition.
    """
    targets = torch.full((len(labels), num_labels), smoothing / num_labels, device=labels.device)
    return targets.scatter_(1, labels.long().unsqueeze(1), 1 - smoothing + smoothing / num_labels)
