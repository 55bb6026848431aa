"""Safe reading of other people's files: nothing is executed, and damage is noticed."""

import argparse
import re
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor


class CheckpointError(ValueError):
    """A file is not what it should be; the message says which file, what is wrong and what to do."""


@dataclass(frozen=True)
class Checkpoint:
    """What a `.pth` file holds.

    Attributes:
        state_dict: Weights in the order of the file.
        args: Training arguments, empty if the file has none.
        checksummed: Whether the file carries checksums, which were then checked. The old serialisation has none.
    """

    state_dict: dict[str, Tensor]
    args: dict[str, Any] = field(default_factory=dict)
    checksummed: bool = True


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a `.pth` file as the official training and releases write it.

    `weights_only` reading with `argparse.Namespace` as the only class beyond tensors and plain containers: training
    checkpoints hold one. Files in the zip format are mapped into memory and their checksums are checked.

    Args:
        path: A file with `{"model": state_dict}`, or with a bare state dict.

    Raises:
        CheckpointError: If there is no such file, it is damaged, holds other classes, or holds no weights.
    """
    path = Path(path)
    _check_file(path)
    is_zip = zipfile.is_zipfile(path)
    if is_zip:
        _check_zip(path)
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except UnpicklingError as error:
        if foreign := re.search(r"GLOBAL (\S+)", str(error)):
            text = f"{path} holds {foreign[1]} beside weights, which could run code: it is not read"
            raise CheckpointError(text) from error
        raise CheckpointError(f"{path} is damaged or no PyTorch checkpoint") from error
    except Exception as error:  # on damaged bytes the reader raises nearly anything
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise CheckpointError(f"{path} is damaged or no PyTorch checkpoint: {reason}") from error
    return Checkpoint(_find_weights(path, content), _find_args(content), checksummed=is_zip)


def _check_file(path: Path) -> None:
    if not path.exists():
        raise CheckpointError(f"{path} does not exist")
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder: name the .pth file")
    if path.stat().st_size == 0:
        raise CheckpointError(f"{path} is empty: download it again")


def _check_zip(path: Path) -> None:
    """PyTorch does not look at the checksums, so that a changed weight would load without a word."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except Exception as error:  # on damaged bytes the reader raises nearly anything
        raise CheckpointError(f"{path} is damaged ({error}): download it again") from error
    if damaged is not None:
        raise CheckpointError(f"{path} is damaged (wrong checksum of {damaged}): download it again")


def _find_weights(path: Path, content: Any) -> dict[str, Tensor]:
    weights = content.get("model", content) if isinstance(content, dict) else content
    if not isinstance(weights, dict) or not weights:
        raise CheckpointError(f"{path} holds no weights: expected a dictionary with a state dict under 'model'")
    strange = [str(key) for key, value in weights.items() if not isinstance(value, Tensor) or not isinstance(key, str)]
    if strange:
        raise CheckpointError(f"{path} holds no state dict: {', '.join(strange[:3])} is no tensor")
    odd = [
        key for key, value in weights.items() if value.layout != torch.strided or value.is_quantized or value.is_meta
    ]
    if odd:
        raise CheckpointError(f"{path} holds weights that are no plain tensors: {', '.join(odd[:3])}")
    return dict(weights)


def _find_args(content: Any) -> dict[str, Any]:
    args = content.get("args") if isinstance(content, dict) else None
    if isinstance(args, argparse.Namespace):
        return vars(args)
    return args if isinstance(args, dict) else {}
