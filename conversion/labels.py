"""Names of classes."""

import json
from pathlib import Path


def imagenet_labels() -> dict[int, str]:
    """Names of the 1000 classes of ImageNet-1k by index; make_imagenet_labels.py says where they come from."""
    text = Path(__file__).with_name("imagenet_labels.json").read_text(encoding="utf-8")
    return {int(index): label for index, label in json.loads(text).items()}
