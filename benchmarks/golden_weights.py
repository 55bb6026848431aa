"""The weights and the input of the golden values of the official implementation, made from their keys.

tests/data/reference/README.md describes the recipe.
"""

import json
import zlib
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy
import torch

REFERENCE = Path(__file__).resolve().parent.parent / "tests" / "data" / "reference"
_NORM_WEIGHTS = ("norm1.weight", "norm2.weight", "norm.weight", "decoder_norm.weight", "fc_norm.weight")


def golden_tensor(key: str, shape: list[int], dtype: str = "float32") -> torch.Tensor:
    """Return the golden values of a tensor; they are random numbers seeded with its key.

    Args:
        key: Official key.
        shape: Shape of the tensor.
        dtype: "float32" or "int64"; integers are 0.
    """
    if dtype == "int64":
        return torch.zeros(shape, dtype=torch.int64)
    rng = numpy.random.RandomState(zlib.crc32(f"mae-reference/{key}".encode()))
    values = torch.from_numpy(rng.standard_normal(shape).astype(numpy.float32) * numpy.float32(0.02))
    if ".".join(key.split(".")[-2:]) in _NORM_WEIGHTS:
        return 1 + values
    return 1 + values.abs() if key.endswith("running_var") else values


def golden_input(num_patches: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the image `(1, 3, 224, 224)` and the noise `(1, L)` of the golden values."""
    rng = numpy.random.RandomState(0)
    pixel_values = rng.standard_normal((1, 3, 224, 224)).astype(numpy.float32)
    return torch.from_numpy(pixel_values), torch.from_numpy(rng.random_sample((1, num_patches)).astype(numpy.float32))


def read_manifest(size: str, kind: str) -> list[dict[str, Any]]:
    """Return key, shape and dtype of every tensor of an official checkpoint, in its order.

    Args:
        size: "base", "large" or "huge".
        kind: "pretrain", "pretrain_full", "finetuned", ...: a file in tests/data/reference/manifests.
    """
    manifest: list[dict[str, Any]] = json.loads((REFERENCE / "manifests" / f"{size}_{kind}.json").read_text())
    return manifest


def write_official(size: str, path: Path, kind: str = "pretrain_full") -> None:
    """Write the golden weights as an official `.pth`; for `size` and `kind` see `read_manifest`."""
    entries = read_manifest(size, kind)
    weights = {e["key"]: golden_tensor(e["key"], e["shape"], e["dtype"].removeprefix("torch.")) for e in entries}
    torch.save({"model": OrderedDict(weights)}, path)
