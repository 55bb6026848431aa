"""Writing a folder whole or not at all, and reading its tensors back."""

import json
import os
import platform
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mae_hf.checkpoint import CheckpointError
from mae_hf.configuration_mae import MAEConfig

_WRITTEN = re.compile(
    r"config\.json|preprocessor_config\.json|README\.md|model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json"
)

_MACHINE = re.sub(r"\W", "_", platform.node())


@contextmanager
def new_folder(destination: Path, overwrite: bool = False) -> Iterator[Path]:
    """Give a folder beside the destination to write to, and put it in its place if the block ends well.

    What a killed run left behind is cleared or, if it was about to replace a folder, put back.

    Args:
        destination: The folder that is to appear.
        overwrite: Replace a folder that a conversion has written.

    Raises:
        CheckpointError: If the destination is there and may not be replaced, or its place is no folder.
    """
    destination = check_destination(destination, overwrite)
    destination.parent.mkdir(parents=True, exist_ok=True)
    # a name of its own for each run, with machine and process, so that a later run can tell whether it is at work
    beside = f".{destination.name}.{{}}-{_MACHINE}-{os.getpid()}-{secrets.token_hex(4)}"
    staging, former = (destination.with_name(beside.format(what)) for what in ("partial", "former"))
    staging.mkdir()
    try:
        yield staging
        check_destination(destination, overwrite)  # another run may have been faster
        if overwrite and destination.exists():
            destination.rename(former)
        staging.rename(destination)  # fails if another folder has come there
    except BaseException:
        if former.exists() and not destination.exists():
            former.rename(destination)
        raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        if destination.exists():
            shutil.rmtree(former, ignore_errors=True)


def _clear_up(destination: Path) -> None:
    """Clear what runs of this machine that are no more have left beside the destination, or put it back."""
    pattern = re.compile(rf"\.{re.escape(destination.name)}\.(partial|former)-{_MACHINE}-(\d+)-[0-9a-f]{{8}}")
    for path in destination.parent.iterdir() if destination.parent.is_dir() else ():
        found = pattern.fullmatch(path.name)
        if found is None or _is_running(int(found[2])):
            continue
        if found[1] == "former" and not destination.exists():
            path.rename(destination)
        else:
            shutil.rmtree(path, ignore_errors=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def check_destination(destination: Path, overwrite: bool = False) -> Path:
    """Resolve links, clear what killed runs have left there, and raise `CheckpointError` if it may not be written."""
    try:
        destination = destination.resolve()
    except (OSError, RuntimeError) as error:  # a loop of links
        raise CheckpointError(f"{destination} cannot be made: {error}") from error
    _clear_up(destination)
    for parent in destination.parents:
        if parent.exists() and not parent.is_dir():
            raise CheckpointError(f"{destination} cannot be made: {parent} is a file")
    if not destination.exists():
        return destination
    if not destination.is_dir():
        raise CheckpointError(f"{destination} is a file, and the result is a folder: choose another destination")
    content = sorted(destination.iterdir())
    if content and not overwrite:
        raise CheckpointError(f"{destination} is there already: choose another destination, or pass --overwrite")
    foreign = [path.name for path in content if not (_WRITTEN.fullmatch(path.name) and path.is_file())]
    if foreign:
        more = f" and {len(foreign) - 3} more" if len(foreign) > 3 else ""
        raise CheckpointError(
            f"{destination} holds {', '.join(foreign[:3])}{more}, which no conversion writes: nothing is replaced, "
            "move it away or choose another destination"
        )
    if content and not _is_converted(destination):
        raise CheckpointError(f"{destination} is no converted folder: nothing is replaced, choose another destination")
    return destination


def _is_converted(folder: Path) -> bool:
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get("model_type") == MAEConfig.model_type


def own_storage(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy what is not contiguous, is a part of a larger storage, or shares one: safetensors takes none of these."""
    owned, seen = {}, set()
    for key, tensor in tensors.items():
        storage = tensor.untyped_storage()
        alone = storage.nbytes() == tensor.nbytes and storage.data_ptr() not in seen
        seen.add(storage.data_ptr())
        owned[key] = tensor if alone and tensor.is_contiguous() else tensor.clone(memory_format=torch.contiguous_format)
    return owned


def read_folder(folder: Path) -> dict[str, Tensor]:
    """Read the tensors that `from_pretrained` reads from a folder, mapped into memory.

    Raises:
        CheckpointError: If there are none, or a file is missing or damaged.
    """
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if not single.exists() and not index.exists():
        raise CheckpointError(f"{folder} holds no model.safetensors: name a converted folder")
    tensors: dict[str, Tensor] = {}
    try:
        names = ["model.safetensors"] if single.exists() else set(json.loads(index.read_text())["weight_map"].values())
        for name in sorted(names):
            tensors.update(load_file(folder / name))
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{folder} is damaged: {error}") from error
    return tensors


def differences(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    """Compare tensors both ways, bit for bit: one line for each that is missing, extra or different."""
    lines = [f"{key} is missing" for key in wanted if key not in found]
    lines += [f"{key} is extra" for key in found if key not in wanted]
    for key in wanted:
        if key in found and (difference := _difference(wanted[key], found[key])):
            lines.append(f"{key} {difference}")
    return lines


def _difference(wanted: Tensor, found: Tensor) -> str | None:
    if wanted.dtype != found.dtype:
        return f"is {found.dtype}, not {wanted.dtype}"
    if wanted.shape != found.shape:
        return f"has the shape {tuple(found.shape)}, not {tuple(wanted.shape)}"
    same = torch.equal(_bytes(wanted), _bytes(found))
    return None if same else "has other values"


def _bytes(tensor: Tensor) -> Tensor:
    """The bits of a tensor, so that NaN equals itself and -0.0 differs from 0.0."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)
