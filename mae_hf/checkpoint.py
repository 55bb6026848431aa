"""Safe reading of other people's files: nothing is executed, and damage is noticed where a format has checksums."""

import argparse
import io
import json
import pickletools
import re
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, BinaryIO

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_INDEX_NAME, WEIGHTS_NAME

_PLAIN = re.compile(
    r"torch\._utils\._rebuild_(tensor|parameter)|torch\.\w*(Storage|Size)$|collections\.|argparse\.Namespace$"
)
_FOLDER = (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_NAME, WEIGHTS_INDEX_NAME)


class CheckpointError(ValueError):
    """A file is not what it should be; the message says which file, what is wrong and what to do."""


@dataclass(frozen=True)
class Checkpoint:
    """What a file or folder of weights holds.

    Attributes:
        state_dict: Weights in the order of the file.
        args: Training arguments, empty if the file has none.
        checksummed: Whether the file carries checksums, which were then checked. safetensors and the old serialisation
            have none.
        files: The files that were read.
        others: What else the file holds beside the weights, such as "optimizer" and "args".
        wrapped: Whether the weights stand under "model", as officially.
    """

    state_dict: dict[str, Tensor]
    args: dict[str, Any] = field(default_factory=dict)
    checksummed: bool = True
    files: tuple[Path, ...] = ()
    others: tuple[str, ...] = ()
    wrapped: bool = False


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a `.pth` file as the official training and releases write it, or a `.bin` or `.safetensors` file.

    `weights_only` reading with `argparse.Namespace` as the only class beyond tensors and plain containers: training
    checkpoints hold one. Files in the zip format are mapped into memory and their checksums are checked.

    Args:
        path: A file with `{"model": state_dict}`, or with a bare state dict.

    Raises:
        CheckpointError: If there is no such file, it is damaged, holds other classes, or holds no weights.
    """
    path = Path(path)
    _check_file(path)
    if path.suffix == ".safetensors":
        return Checkpoint(_read_safetensors(path), checksummed=False, files=(path,))
    with path.open("rb") as file:
        is_zip = file.read(4) == b"PK\x03\x04"  # by which PyTorch tells it, too
    if is_zip:
        _check_zip(path)
    try:
        with _only_namespace_allowed():
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except UnpicklingError as error:
        if foreign := _foreign_classes(path, is_zip):
            text = f"{path} holds {', '.join(foreign[:3])} beside weights, which could run code: it is not read"
            raise CheckpointError(text) from error
        reason = "if it is neither, save it again with torch.save, in its usual pickle protocol"
        raise CheckpointError(f"{path} is damaged or no PyTorch checkpoint; {reason}") from error
    except Exception as error:  # on damaged bytes the reader raises nearly anything
        raise CheckpointError(f"{path} is damaged or no PyTorch checkpoint: {first_line(error)}") from error
    weights, wrapped = _find_weights(path, content), "model" in content
    others = tuple(str(name) for name in content if name != "model") if wrapped else ()
    return Checkpoint(weights, _find_args(content), is_zip, (path,), others, wrapped)


def read_folder(folder: str | Path) -> Checkpoint:
    """Read the weights that `from_pretrained` reads from a folder: safetensors or `pytorch_model.bin`, sharded or not.

    Raises:
        CheckpointError: If there are none, or a file is missing, damaged or outside the folder.
    """
    files = _files_of(Path(folder))
    parts = [read_checkpoint(file) for file in files]
    weights = {key: value for part in parts for key, value in part.state_dict.items()}
    if len(weights) < sum(len(part.state_dict) for part in parts):
        raise CheckpointError(f"{folder} is damaged: a weight is in two of its files")
    return Checkpoint(weights, checksummed=all(part.checksummed for part in parts), files=files)


def fetch_folder(name: str | Path, **hub_options: Any) -> Path:
    """A folder as it is, or a repository of the Hub downloaded into the cache: config, card and weights.

    Args:
        name: Folder or Hub id.
        **hub_options: `revision`, `token`, `cache_dir`, `local_files_only`, `force_download`.

    Raises:
        CheckpointError: If there is no such folder, and the name cannot be that of a repository.
        OSError, ValueError: If there is no such repository, as huggingface_hub says it.
    """
    if Path(name).is_dir():
        return Path(name)
    try:
        validate_repo_id(str(name))
    except HFValidationError as error:
        raise CheckpointError(f"{name} does not exist, and cannot be a repository of the Hub") from error
    wanted = ["config.json", "README.md", "model*.safetensors", SAFE_WEIGHTS_INDEX_NAME]
    folder = Path(snapshot_download(str(name), allow_patterns=wanted, **hub_options))
    if not any((folder / file).exists() for file in _FOLDER[:2]):
        wanted = ["pytorch_model*.bin", WEIGHTS_INDEX_NAME]
        folder = Path(snapshot_download(str(name), allow_patterns=wanted, **hub_options))
    return folder


def read_config(folder: Path) -> dict[str, Any]:
    """Content of a folder's `config.json`; raises `CheckpointError` if there is none or it is damaged."""
    try:
        fields = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{folder} holds no readable config.json: {first_line(error)}") from error
    if not isinstance(fields, dict):
        raise CheckpointError(f"{folder} holds a config.json that is no dictionary")
    return fields


def first_line(error: BaseException) -> str:
    """First line of an error's text, for a message of one line; its name if it has no text."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _files_of(folder: Path) -> tuple[Path, ...]:
    found = next((folder / name for name in _FOLDER if (folder / name).exists()), None)
    if found is None:
        raise CheckpointError(f"{folder} holds no {_FOLDER[0]} and no {_FOLDER[2]}: name a folder with weights")
    if found.suffix != ".json":
        return (found,)
    try:
        names = sorted({str(name) for name in json.loads(found.read_text())["weight_map"].values()})
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{found} is damaged: {error}") from error
    for name in names:
        if Path(name).name != name or not (folder / name).is_file():
            raise CheckpointError(f"{folder} is damaged: it holds no file {name!r}, which its index names")
    return tuple(folder / name for name in names)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, LookupError) as error:
        raise CheckpointError(f"{path} is damaged or no safetensors file: {error}") from error


@contextmanager
def _only_namespace_allowed() -> Iterator[None]:
    """`argparse.Namespace` as the only class: importing parts of PyTorch allows some that do more than hold data."""
    allowed = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals([argparse.Namespace])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of unusual pickles, which are then refused
            yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(allowed)


def _foreign_classes(path: Path, is_zip: bool) -> list[str]:
    """Classes and functions that a refused pickle names, those of a plain checkpoint left out; nothing is executed."""
    try:
        if is_zip:
            with zipfile.ZipFile(path) as archive:
                pickled = archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))
            names = _globals_of(io.BytesIO(pickled))
        else:
            with path.open("rb") as file:
                names = _globals_of(file)
    except (OSError, StopIteration, zipfile.BadZipFile):
        return []
    return [name for name in dict.fromkeys(names) if not _PLAIN.match(name)]


def _globals_of(file: BinaryIO) -> list[str]:
    """Names that pickles call for, one pickle after the other until there is no more."""
    names: list[str] = []
    try:
        while True:
            strings: list[str] = []  # as they come onto the stack, which is where STACK_GLOBAL finds its two
            memo: dict[int, str] = {}
            for operation, argument, _ in pickletools.genops(file):
                if operation.name in ("GLOBAL", "INST"):
                    names.append(str(argument).replace(" ", "."))
                elif operation.name == "STACK_GLOBAL":
                    names.append(".".join(strings[-2:]))
                elif operation.name == "MEMOIZE":
                    memo[len(memo)] = strings[-1] if strings else ""
                elif operation.name in ("BINGET", "LONG_BINGET"):
                    strings.append(memo.get(int(argument or 0), ""))
                elif "UNICODE" in operation.name:
                    strings.append(str(argument))
    except Exception:  # the end, or no pickle
        return names


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
        key
        for key, value in weights.items()
        if value.layout != torch.strided
        or value.is_quantized
        or value.is_meta
        or value.is_neg()
        or value.untyped_storage().nbytes() < value.nbytes  # rows that are one row
    ]
    if odd:
        raise CheckpointError(f"{path} holds weights that are no plain tensors: {', '.join(odd[:3])}")
    return dict(weights)


def _find_args(content: dict[str, Any]) -> dict[str, Any]:
    args = content.get("args")
    if isinstance(args, argparse.Namespace):
        args = vars(args)
    return {str(name): value for name, value in args.items()} if isinstance(args, dict) else {}
