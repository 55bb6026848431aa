"""A dataset of the images in a folder, with reproducible order and transforms; the official evaluation transform."""

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
MEAN = torch.tensor(IMAGENET_DEFAULT_MEAN).view(3, 1, 1)
STD = torch.tensor(IMAGENET_DEFAULT_STD).view(3, 1, 1)
REPLACEMENTS = 100  # consecutive unreadable images after which training stops
Transform = Callable[[Image.Image, Random], Tensor]


class ImageFolder(torch.utils.data.Dataset):
    """The images of a folder, labelled with the names of its class folders if it has any.

    Everything random about a sample, its position in the epoch and its transform, is determined by the seed, the epoch
    and its index. So it is the same for any number of processes and workers, and after resuming. Pass the dataset to
    `Trainer` with `train_sampling_strategy="sequential"`: the dataset shuffles itself, because accelerate's order
    starts over when several processes resume. `Trainer` calls `set_epoch` at the start of each epoch, also of an epoch
    that it resumes; a custom training loop has to call it. It takes effect in persistent workers too.

    Args:
        folder: Folder with images at any depth, in any format that Pillow reads. Files with other suffixes are skipped.
        transform: Function from an image and a random number generator to `(3, H, W)`; picklable if workers are
            started by spawn.
        seed: Seed of order and transforms.
        train: Shuffle, and use the next image instead of one that cannot be read. Otherwise the order is that of the
            folder, and such an image is an error.
    """

    def __init__(self, folder: str, transform: Transform, seed: int = 0, train: bool = False) -> None:
        self.folder = folder
        self.files = list_images(folder)
        self.classes = self.files.features["label"].names if "label" in self.files.features else []
        self.transform = transform
        self.seed = seed
        self.train = train
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._order = -1, np.empty(0)  # epoch, index of the image at each position

    def __len__(self) -> int:
        return len(self.files)

    def set_epoch(self, epoch: int) -> None:
        """Use the order and the transforms of this epoch from now on."""
        self.epoch.fill_(epoch)

    def __getitem__(self, position: int) -> dict:
        """Return `pixel_values` `(3, H, W)`, `index`, `epoch` (None unless training) and `labels` if there are classes.

        Raises:
            IndexError: If there is no such position.
            ValueError: If the image cannot be read; in training, if too many in a row cannot.
        """
        if not 0 <= position < len(self):
            raise IndexError(f"position {position} is out of range: {self.folder} has {len(self)} images")
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
                logger.warning("skipped, using the next image instead: %s", error)
        raise ValueError(f"{tries} images in a row in {self.folder} cannot be read")


def list_images(folder: str) -> Dataset:
    """List the images of a folder and their classes in alphabetical order, in memory that workers share.

    The class of an image is the top-level folder that contains it, at any depth. Symbolic links are followed.

    Raises:
        ValueError: If there is no such folder, or it has no images.
    """
    if not os.path.isdir(folder):
        raise ValueError(f"no such folder: {folder}")
    readable = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    paths, tops, others = [], [], []
    for place, folders, names in os.walk(folder, followlinks=True):
        above = Path(place).resolve()  # following a link to a parent folder would never end
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
        raise ValueError(f"no images in {folder}")
    if others:
        logger.info("skipped %d files in %s that are not images, such as %s", len(others), folder, others[0])
    classes = [] if None in tops else sorted(set(tops))
    labels = {"label": tops} if classes else {}
    features = Features({"path": Value("string")} | ({"label": ClassLabel(names=classes)} if classes else {}))
    return Dataset.from_dict({"path": paths} | labels, features)


def read_image(path: str | Path) -> Image.Image:
    """Read an image as RGB, ignoring its EXIF orientation like the official scripts.

    Raises:
        ValueError: If the image cannot be read, or has more than 8 bits per channel, which Pillow would clip.
        OSError: If the file cannot be opened.
    """
    try:
        with Image.open(path) as opened:
            mode = opened.mode
            image = opened.convert("RGB")
    except Exception as error:  # Pillow raises what its formats raise: OSError, SyntaxError, NotImplementedError, ...
        if isinstance(error, MemoryError) or getattr(error, "errno", None):
            raise  # not the fault of the image
        raise ValueError(f"{path} cannot be read as an image: {error}") from error
    if mode.startswith(("I", "F")):
        raise ValueError(f"{path} has more than 8 bits per channel: convert it to 8 bits first")
    return image


def to_tensor(image: Image.Image) -> Tensor:
    """Return the pixels `(3, H, W)`, normalised by the mean and standard deviation of ImageNet."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255  # H W 3 -> 3 H W
    return (pixels - MEAN) / STD


def crop_and_flip(image: Image.Image, rng: Random, size: tuple[int, int], min_crop: float, flip: float) -> Image.Image:
    """Apply the random resized crop and horizontal flip with which every training transform starts.

    Args:
        image: RGB image of any size.
        rng: Random number generator.
        size: (height, width) of the result in pixels.
        min_crop: Minimum area of the crop, as a fraction of the image.
        flip: Probability of the flip.
    """
    image = random_resized_crop(image, size, rng, (min_crop, 1.0))
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < flip else image


def evaluation_transform(image: Image.Image, rng: Random, size: tuple[int, int]) -> Tensor:
    """Resize the shorter side to 256/224 of the size (above 224 pixels: to the size), bicubic, and crop the centre.

    `preprocessor_config.json` specifies the same transform, but transformers crops one pixel further up or left if the
    margin is 3, 7, 11, ... pixels, because it rounds half the margin down.

    Args:
        image: RGB image of any size.
        rng: Not used: the transform is deterministic.
        size: (height, width) of the result in pixels.

    Returns:
        Normalised pixels, `(3, H, W)`.

    Source: `build_transform` in util/datasets.py of facebookresearch/mae.
    """
    height, width = size
    short = int(max(size) * 256 / 224) if max(size) <= 224 else max(size)
    long = int(short * max(image.size) / min(image.size))
    image = image.resize((short, long) if image.width <= image.height else (long, short), Image.Resampling.BICUBIC)
    left = round((image.width - width) / 2)
    top = round((image.height - height) / 2)
    return to_tensor(image.crop((left, top, left + width, top + height)))
