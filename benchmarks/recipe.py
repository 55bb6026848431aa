"""Weights and input that the golden values of the official implementation were computed with."""

import json
import zlib
from pathlib import Path

import numpy
import torch

REFERENCE = Path(__file__).resolve().parent.parent / "tests" / "data" / "reference"
_NORM_WEIGHTS = ("norm1.weight", "norm2.weight", "norm.weight", "decoder_norm.weight")


def recipe_tensor(key: str, shape: list[int]) -> torch.Tensor:
    """The weight of an official key, by the recipe of the golden values: the key alone decides the values."""
    rng = numpy.random.RandomState(zlib.crc32(f"mae-reference/{key}".encode()))
    values = rng.standard_normal(shape).astype(numpy.float32) * numpy.float32(0.02)
    is_norm = ".".join(key.split(".")[-2:]) in _NORM_WEIGHTS
    return torch.from_numpy(numpy.float32(1) + values if is_norm else values)


def write_official(preset: str, path: Path, kind: str = "pretrain_full") -> None:
    """Write the recipe's weights of one size as an official `.pth`."""
    manifest = json.loads((REFERENCE / "manifests" / f"{preset}_{kind}.json").read_text())
    torch.save({"model": {entry["key"]: recipe_tensor(entry["key"], entry["shape"]) for entry in manifest}}, path)


def recipe_input(num_patches: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Image `(1, 3, 224, 224)` and noise `(1, L)` of the golden values."""
    rng = numpy.random.RandomState(0)
    pixel_values = rng.standard_normal((1, 3, 224, 224)).astype(numpy.float32)
    return torch.from_numpy(pixel_values), torch.from_numpy(rng.random_sample((1, num_patches)).astype(numpy.float32))
