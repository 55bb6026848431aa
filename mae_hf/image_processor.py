"""From a photograph to the pixels that a model takes, as a transformers image processor."""

from transformers import BitImageProcessorPil
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from .configuration_mae import MAEConfig
from .patch_embed import to_pair


def image_processor(config: MAEConfig) -> BitImageProcessorPil:
    """Make the evaluation transform for a model's image size, the official one at 224 pixels, as an image processor.

    Shorter side to 256 / 224 of the longer side of `config.image_size`, bicubic; centre crop; ImageNet statistics.

    Source: `build_transform` in util/datasets.py of facebookresearch/mae.
    """
    height, width = to_pair(config.image_size)
    return BitImageProcessorPil(
        size={"shortest_edge": int(max(height, width) * 256 / 224)},
        crop_size={"height": height, "width": width},
        image_mean=IMAGENET_DEFAULT_MEAN,
        image_std=IMAGENET_DEFAULT_STD,
    )
