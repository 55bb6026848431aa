"""A folder of images as a dataset whose randomness belongs to the sample, and the official evaluation transform."""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
import torch
from datasets import ClassLabel, Dataset, Features, Value
from PIL import Image
from torch import Tensor
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from augmentation import random_resized_crop
from mae_hf.training import seeded

logger = logging.getLogger("examples.images")
MEAN, STD = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
REPLACEMENTS = 100  # broken images in a row, after which training stops
Transform = Callable[[Image.Image, Random], Tensor]


class ImageFolder(torch.utils.data.Dataset):
    """The images of a folder, with the names of its class folders as labels if it has such.

    What is random about a sample, its place in the order and its transform, comes from the seed, the epoch and its
    index alone: it is the same for any number of processes and workers, and after resuming. So give it to `Trainer`
    with `train_sampling_strategy="sequential"`, and call `set_epoch` when an epoch begins, which reaches persistent
    workers too. The order is made here as that of accelerate starts over when several processes resume.

    Args:
        folder: Images in any depth, in any format that Pillow reads. Files with other endings are skipped.
        transform: From an image and a source of randomness to `(3, H, W)`; workers may have to pickle it.
        seed: Of order and transforms.
        train: Shuffle, and put the next image in the place of one that cannot be read; else both would be errors.
    """

    def __init__(self, folder: str, transform: Transform, seed: int = 0, train: bool = False) -> None:
        self.folder, self.files = folder, list_images(folder)
        self.classes = self.files.features["label"].names if "label" in self.files.features else []
        self.transform, self.seed, self.train = transform, seed, train
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._order = -1, np.empty(0)  # epoch, index of each position

    def __len__(self) -> int:
        return len(self.files)

    def set_epoch(self, epoch: int) -> None:
        """Order and transforms of this epoch from now on."""
        self.epoch.fill_(epoch)

    def __getitem__(self, position: int) -> dict:
        """`pixel_values` `(3, H, W)`, `index`, `epoch` (None unless training) and, if there are classes, `labels`."""
        if not 0 <= position < len(self):
            raise IndexError(f"there is no image {position}, there are {len(self)}")
        epoch = int(self.epoch) if self.train else None
        image, index = self._read(position if epoch is None else self._shuffled(epoch)[position])
        sample = {"pixel_values": self.transform(image, seeded(self.seed, "transform", epoch, index))}
        sample |= {"epoch": epoch, "index": index}
        return sample | {"labels": self.files[index]["label"]} if self.classes else sample

    def _shuffled(self, epoch: int) -> np.ndarray:
        if self._order[0] != epoch:
            generator = torch.Generator().manual_seed(seeded(self.seed, "order", epoch).getrandbits(63))
            self._order = epoch, torch.randperm(len(self), generator=generator).numpy()
        return self._order[1]

    def _read(self, index: int) -> tuple[Image.Image, int]:
        tries = min(len(self), REPLACEMENTS)
        for step in range(tries):
            found = (int(index) + step) % len(self)
            try:
                return read_image(self.files[found]["path"]), found
            except ValueError as error:
                if not self.train:
                    raise
                logger.warning("skipped, the next image takes its place: %s", error)
        raise ValueError(f"{tries} images in a row in {self.folder} cannot be read")


def list_images(folder: str) -> Dataset:
    """The paths of the images in a folder and their classes, in alphabetical order, in the memory that workers share.

    The class is the folder within `folder` in which an image lies, at any depth. Links are followed.
    """
    if not os.path.isdir(folder):
        raise ValueError(f"there is no folder {folder}")
    readable = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    paths, tops, others = [], [], []
    for place, folders, names in os.walk(folder, followlinks=True):
        above = Path(place).resolve()  # a link to a folder above would never end
        folders[:] = [name for name in folders if not above.is_relative_to(Path(place, name).resolve())]
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        top = next(iter(Path(place).relative_to(folder).parts), None)
        for name in sorted(name for name in names if not name.startswith(".")):
            if os.path.splitext(name)[1].lower() in readable:
                paths.append(os.path.join(place, name))
                tops.append(top)
            else:
                others.append(os.path.join(place, name))
    if not paths:
        raise ValueError(f"there is no image in {folder}")
    if others:
        logger.info("skipped %d files in %s that are no images, %s for one", len(others), folder, others[0])
    classes = [] if None in tops else sorted(set(tops))
    labels = {"label": tops} if classes else {}
    features = Features({"path": Value("string")} | ({"label": ClassLabel(names=classes)} if classes else {}))
    return Dataset.from_dict({"path": paths} | labels, features)


def read_image(path: str | Path) -> Image.Image:
    """An image in RGB, not turned by its EXIF data, as the official scripts read it.

    Raises:
        ValueError: If it cannot be read, or has more than 8 bits a channel, which Pillow would clip.
    """
    try:
        with Image.open(path) as opened:
            mode, image = opened.mode, opened.convert("RGB")
    except Exception as error:  # Pillow raises what its formats do: OSError, SyntaxError, NotImplementedError, ...
        if isinstance(error, MemoryError) or getattr(error, "errno", None):
            raise  # no fault of the image
        raise ValueError(f"{path} is no image that can be read: {error}") from error
    if mode.startswith(("I", "F")):
        raise ValueError(f"{path} has more than 8 bits a channel: convert it to 8 first")
    return image


def to_tensor(image: Image.Image) -> Tensor:
    """Pixels `(3, H, W)`, by the statistics of ImageNet."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255  # H W 3 -> 3 H W
    return (pixels - MEAN) / STD


def crop_and_flip(image: Image.Image, rng: Random, size: tuple[int, int], min_crop: float, flip: float) -> Image.Image:
    """Random resized crop of so much of the image at least, bicubic, and flip: every training transform starts so."""
    image = random_resized_crop(image, size, rng, (min_crop, 1.0))
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < flip else image


def evaluation_transform(image: Image.Image, rng: Random, size: tuple[int, int]) -> Tensor:
    """Shorter side to 256/224 of the size (above 224 pixels: to the size), bicubic, and the centre.

    `preprocessor_config.json` says the same up to 224 pixels, but transformers may crop a pixel further up or left
    where an odd number of pixels is left over.

    Source: `build_transform` in util/datasets.py of facebookresearch/mae.
    """
    height, width = size
    short = int(max(size) * 256 / 224) if max(size) <= 224 else max(size)
    long = int(short * max(image.size) / min(image.size))
    image = image.resize((short, long) if image.width <= image.height else (long, short), Image.Resampling.BICUBIC)
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return to_tensor(image.crop((left, top, left + width, top + height)))
