"""Safe reading of checkpoints: no code in a file is executed, and damage is detected where the format has checksums."""

import argparse
import json
import re
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_INDEX_NAME, WEIGHTS_NAME

# Where trainers store the state dict: its key in the file, and a prefix of all its names; the first match is read.
_WRAPPERS = (("model", ""),)  # main_pretrain.py and main_finetune.py of facebookresearch/mae

_SAFETENSORS = (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME)
_PICKLED = (WEIGHTS_NAME, WEIGHTS_INDEX_NAME)


class CheckpointError(ValueError):
    """A checkpoint cannot be used; the message names the file, what is wrong with it, and what to do."""


@dataclass(frozen=True)
class Checkpoint:
    """The content of a file or folder of weights.

    Attributes:
        state_dict: Weights in the order of the file.
        fields: Training arguments stored in the file; empty if there are none.
        checksummed: Whether the format has checksums, which were then verified. safetensors and the legacy
            serialisation of PyTorch have none.
        files: The files that were read.
        others: Names of everything else in the file, such as "optimizer" and "args".
        wrapper: Key under which the state dict is stored, "model" in official files; "" for a bare one.
    """

    state_dict: dict[str, Tensor]
    fields: dict[str, Any] = field(default_factory=dict)
    checksummed: bool = True
    files: tuple[Path, ...] = ()
    others: tuple[str, ...] = ()
    wrapper: str = ""


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a `.pth` file as the official training code and releases write it, or a `.bin` or `.safetensors` file.

    Pickles are read with `weights_only=True`, and `argparse.Namespace`, which training checkpoints contain, is the only
    class allowed beyond tensors and plain containers. Files in the zip format are memory-mapped and their checksums
    verified.

    Args:
        path: A file with `{"model": state_dict}`, or with a bare state dict.

    Raises:
        CheckpointError: If the file does not exist, is damaged, contains other classes, or contains no weights.
    """
    path = Path(path)
    _check_file(path)
    if path.suffix == ".safetensors":
        return Checkpoint(_read_safetensors(path), checksummed=False, files=(path,))
    with path.open("rb") as file:
        is_zip = file.read(4) == b"PK\x03\x04"  # PyTorch looks at the same bytes
    if is_zip:
        _check_zip(path)
    try:
        with _only_namespace_allowed():
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except UnpicklingError as error:
        if foreign := re.search(r"GLOBAL ([\w.]+)", str(error)):  # PyTorch stops at the first name that is not allowed
            text = f"{path} contains {foreign[1]} besides weights, which could run code: it is not read"
            raise CheckpointError(text) from error
        reason = "loading it could run code; if you trust it, save only its state dict again with torch.save"
        raise CheckpointError(f"{path} is damaged or not a PyTorch checkpoint; {reason}") from error
    except Exception as error:  # damaged bytes can raise nearly anything
        raise CheckpointError(f"{path} is damaged or not a PyTorch checkpoint: {first_line(error)}") from error
    key, weights = _find_weights(path, content)
    others = tuple(str(name) for name in content if name != key) if key else ()
    args = content.get("args")
    args = vars(args) if isinstance(args, argparse.Namespace) else args
    fields = {str(name): value for name, value in args.items()} if isinstance(args, dict) else {}
    return Checkpoint(weights, fields, checksummed=is_zip, files=(path,), others=others, wrapper=key)


def read_folder(folder: str | Path) -> Checkpoint:
    """Read the weights that `from_pretrained` reads from a folder: safetensors or `pytorch_model.bin`, sharded or not.

    Raises:
        CheckpointError: If there are no weights, or a file is missing, damaged or outside the folder.
    """
    files = _weight_files(Path(folder))
    parts = [read_checkpoint(file) for file in files]
    weights = {key: value for part in parts for key, value in part.state_dict.items()}
    if len(weights) < sum(len(part.state_dict) for part in parts):
        raise CheckpointError(f"{folder} is damaged: two of its files contain the same weight")
    return Checkpoint(weights, checksummed=all(part.checksummed for part in parts), files=files)


def fetch_folder(name: str | Path, **hub_options: Any) -> Path:
    """Return a local folder unchanged, or download config, card and weights of a Hub repository into the cache.

    Args:
        name: Folder or Hub id.
        **hub_options: `revision`, `token`, `cache_dir`, `local_files_only`, `force_download`.

    Raises:
        CheckpointError: If there is no such folder, and the name is not a valid Hub id.
        OSError, ValueError: If there is no such repository, as raised by huggingface_hub.
    """
    if Path(name).is_dir():
        return Path(name)
    try:
        validate_repo_id(str(name))
    except HFValidationError as error:
        raise CheckpointError(f"{name} does not exist, and is not a valid Hub id") from error
    wanted = ["config.json", "README.md", "model*.safetensors", SAFE_WEIGHTS_INDEX_NAME]
    folder = Path(snapshot_download(str(name), allow_patterns=wanted, **hub_options))
    if not any((folder / file).exists() for file in _SAFETENSORS):
        wanted = ["pytorch_model*.bin", WEIGHTS_INDEX_NAME]
        folder = Path(snapshot_download(str(name), allow_patterns=wanted, **hub_options))
    return folder


def read_config(folder: Path) -> dict[str, Any]:
    """Read a folder's `config.json`; raises `CheckpointError` if it is missing or damaged."""
    try:
        fields = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{folder} contains no readable config.json: {first_line(error)}") from error
    if not isinstance(fields, dict):
        raise CheckpointError(f"{folder} contains a config.json that is not a dictionary")
    return fields


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, or its type if it has no text, for a message of one line."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _weight_files(folder: Path) -> tuple[Path, ...]:
    found = next((folder / name for name in (*_SAFETENSORS, *_PICKLED) if (folder / name).exists()), None)
    if found is None:
        raise CheckpointError(f"{folder} contains neither {SAFE_WEIGHTS_NAME} nor {WEIGHTS_NAME}")
    if found.suffix != ".json":
        return (found,)
    try:
        names = sorted({str(name) for name in json.loads(found.read_text())["weight_map"].values()})
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{found} is damaged: {error}") from error
    for name in names:
        if Path(name).name != name or not (folder / name).is_file():
            raise CheckpointError(f"{folder} is damaged: its index names {name!r}, which is not a file in the folder")
    return tuple(folder / name for name in names)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, LookupError) as error:
        raise CheckpointError(f"{path} is damaged or not a safetensors file: {error}") from error


@contextmanager
def _only_namespace_allowed() -> Iterator[None]:
    """Allow `argparse.Namespace` alone: parts of PyTorch, once imported, allow classes that do more than hold data."""
    allowed = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals([argparse.Namespace])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about unusual pickles, which are refused anyway
            yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(allowed)


def _check_file(path: Path) -> None:
    if not path.exists():
        raise CheckpointError(f"{path} does not exist")
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder: pass the .pth file")
    if path.stat().st_size == 0:
        raise CheckpointError(f"{path} is empty: download it again")


def _check_zip(path: Path) -> None:
    """Verify the checksums, which PyTorch ignores: a changed weight would load without an error."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except Exception as error:  # damaged bytes can raise nearly anything
        raise CheckpointError(f"{path} is damaged ({error}): download it again") from error
    if damaged is not None:
        raise CheckpointError(f"{path} is damaged (wrong checksum of {damaged}): download it again")


def _find_weights(path: Path, content: Any) -> tuple[str, dict[str, Tensor]]:
    """Return the key under which the state dict is stored ("" for a bare one), and the state dict."""
    wrapper, prefix = next((pair for pair in _WRAPPERS if _is_wrapped(content, *pair)), ("", ""))
    weights = content[wrapper] if wrapper else content
    if not isinstance(weights, dict) or not weights:
        names = " or ".join(repr(key) for key, _ in _WRAPPERS)
        raise CheckpointError(f"{path} contains no weights: expected a state dict, alone or under {names}")
    strange = [str(key) for key, value in weights.items() if not isinstance(value, Tensor) or not isinstance(key, str)]
    if strange:
        raise CheckpointError(f"{path} contains no state dict: {', '.join(strange[:3])} is not a tensor")
    if odd := [key for key, value in weights.items() if not _is_plain(value)]:
        raise CheckpointError(f"{path} contains weights that are not plain tensors: {', '.join(odd[:3])}")
    return wrapper, {key.removeprefix(prefix): value for key, value in weights.items()}


def _is_wrapped(content: Any, key: str, prefix: str) -> bool:
    weights = content.get(key) if isinstance(content, dict) else None
    return weights is not None and (not isinstance(weights, dict) or all(str(x).startswith(prefix) for x in weights))


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is dense, holds its values, and has storage for each of them (an expanded one has not)."""
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta or tensor.is_neg():
        return False
    return tensor.untyped_storage().nbytes() >= tensor.nbytes
