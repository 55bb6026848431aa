"""Weights and input that the golden values of the official implementation were computed with."""

import json
import zlib
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy
import torch

REFERENCE = Path(__file__).resolve().parent.parent / "tests" / "data" / "reference"
_NORM_WEIGHTS = ("norm1.weight", "norm2.weight", "norm.weight", "decoder_norm.weight", "fc_norm.weight")


def recipe_tensor(key: str, shape: list[int], dtype: str = "float32") -> torch.Tensor:
    """The tensor of an official key, by the recipe of the golden values: the key alone decides the values."""
    if dtype == "int64":
        return torch.zeros(shape, dtype=torch.int64)
    rng = numpy.random.RandomState(zlib.crc32(f"mae-reference/{key}".encode()))
    values = torch.from_numpy(rng.standard_normal(shape).astype(numpy.float32) * numpy.float32(0.02))
    if ".".join(key.split(".")[-2:]) in _NORM_WEIGHTS:
        return 1 + values
    return 1 + values.abs() if key.endswith("running_var") else values


def read_manifest(preset: str, kind: str) -> list[dict[str, Any]]:
    """Key, shape and dtype of every tensor of an official checkpoint, in its order."""
    manifest: list[dict[str, Any]] = json.loads((REFERENCE / "manifests" / f"{preset}_{kind}.json").read_text())
    return manifest


def write_official(preset: str, path: Path, kind: str = "pretrain_full") -> None:
    """Write the recipe's weights of one size as an official `.pth`."""
    entries = read_manifest(preset, kind)
    weights = {e["key"]: recipe_tensor(e["key"], e["shape"], e["dtype"].removeprefix("torch.")) for e in entries}
    torch.save({"model": OrderedDict(weights)}, path)


def recipe_input(num_patches: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Image `(1, 3, 224, 224)` and noise `(1, L)` of the golden values."""
    rng = numpy.random.RandomState(0)
    pixel_values = rng.standard_normal((1, 3, 224, 224)).astype(numpy.float32)
    return torch.from_numpy(pixel_values), torch.from_numpy(rng.random_sample((1, num_patches)).astype(numpy.float32))
