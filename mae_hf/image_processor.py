"""From a photograph to the input of a model, as an image processor of transformers."""

from transformers import BitImageProcessorPil
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from .configuration_mae import MAEConfig
from .patch_embed import to_pair


def image_processor(config: MAEConfig) -> BitImageProcessorPil:
    """Return the official evaluation transform for a model's image size as an image processor.

    Resize the shorter side (see `shorter_side`), bicubic; centre crop; normalise with ImageNet's mean and standard
    deviation.

    Source: `build_transform` in util/datasets.py of facebookresearch/mae.
    """
    height, width = to_pair(config.image_size)
    return BitImageProcessorPil(
        size={"shortest_edge": shorter_side(config.image_size)},
        crop_size={"height": height, "width": width},
        image_mean=IMAGENET_DEFAULT_MEAN,
        image_std=IMAGENET_DEFAULT_STD,
    )


def shorter_side(image_size: int | tuple[int, int]) -> int:
    """Return the length in pixels to which the shorter side is resized before the crop.

    It is 256 / 224 of the longer side of the crop; the longer side itself if that exceeds 224 pixels.
    """
    side = max(to_pair(image_size))
    return int(side * 256 / 224) if side <= 224 else side
