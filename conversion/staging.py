"""Putting a folder or file in its place whole or not at all."""

import os
import platform
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mae_hf.checkpoint import CheckpointError, read_checkpoint, read_config
from mae_hf.remote_code import code_files

from .catalogue import RELEASES
from .layouts import OFFICIAL, layout_of_config, layout_of_keys

_WRITTEN = re.compile(
    r"config\.json|preprocessor_config\.json|README\.md|model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json"
)

_MACHINE = re.sub(r"\W", "_", platform.node())


@contextmanager
def staged(destination: Path, overwrite: bool = False, one_file: bool = False) -> Iterator[Path]:
    """Give a place beside the destination to write to, and put it into the destination's if the block ends well.

    What a killed run left behind is cleared or, if it was about to replace a folder, put back.

    Args:
        destination: The folder or file that is to appear.
        overwrite: Replace what a conversion has written.
        one_file: The place is the path of a file to write, not a folder.

    Raises:
        CheckpointError: If the destination is there and may not be replaced, or its place cannot be written to.
    """
    destination = check_destination(destination, overwrite, one_file)
    # a name of its own for each run, with machine and process, so that a later run can tell whether it is at work
    beside = f".{destination.name}.{{}}-{_MACHINE}-{os.getpid()}-{secrets.token_hex(4)}"
    staging, former = (destination.with_name(beside.format(what)) for what in ("partial", "former"))
    new_parents = [parent for parent in destination.parents if not parent.exists()]
    try:
        try:
            destination.parent.mkdir(parents=True, exist_ok=True)
            staging.touch() if one_file else staging.mkdir()
        except OSError as error:
            raise CheckpointError(f"{destination} cannot be made: {error}") from error
        yield staging
        check_destination(destination, overwrite, one_file)  # another run may have been faster
        if one_file:
            staging.replace(destination)  # in one step
            return
        if overwrite and destination.exists():
            destination.rename(former)
        staging.rename(destination)  # fails if another folder has come there
    except BaseException:
        if former.exists() and not destination.exists():
            former.rename(destination)
        raise
    finally:
        _remove(staging)
        if destination.exists():
            _remove(former)
        else:
            _remove_if_empty(new_parents)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _remove_if_empty(folders: list[Path]) -> None:
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


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
            _remove(path)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def check_destination(destination: Path, overwrite: bool = False, one_file: bool = False) -> Path:
    """Resolve links, clear what killed runs have left there, and raise `CheckpointError` if it may not be written."""
    try:
        destination = destination.resolve()
        _clear_up(destination)
        for parent in destination.parents:
            if parent.exists() and not parent.is_dir():
                raise CheckpointError(f"{destination} cannot be made: {parent} is a file")
        if destination.exists():
            (_check_old_file if one_file else _check_old_folder)(destination, overwrite)
    except (OSError, RuntimeError) as error:  # no permission, a loop of links
        raise CheckpointError(f"{destination} cannot be made: {error}") from error
    return destination


def _check_old_file(destination: Path, overwrite: bool) -> None:
    if destination.is_dir():
        raise CheckpointError(f"{destination} is a folder, and the result is a file: name a file, such as model.pth")
    if not overwrite:
        raise CheckpointError(f"{destination} is there already: choose another destination, or pass --overwrite")
    try:
        found = read_checkpoint(destination)
        is_ours = found.wrapped and not found.others and layout_of_keys(found.state_dict) == OFFICIAL
    except CheckpointError:
        is_ours = False
    if not is_ours or destination.stem in [release.name for release in RELEASES]:
        raise CheckpointError(f"{destination} is no converted file: nothing is replaced, choose another destination")


def _check_old_folder(destination: Path, overwrite: bool) -> None:
    if not destination.is_dir():
        raise CheckpointError(f"{destination} is a file, and the result is a folder: choose another destination")
    content = sorted(destination.iterdir())
    if content and not overwrite:
        raise CheckpointError(f"{destination} is there already: choose another destination, or pass --overwrite")
    config = _config_of(destination)
    code = [file.name for file in code_files()] if "auto_map" in config else []
    written = [path for path in content if path.is_file() and (_WRITTEN.fullmatch(path.name) or path.name in code)]
    foreign = [path.name for path in content if path not in written]
    if foreign:
        more = f" and {len(foreign) - 3} more" if len(foreign) > 3 else ""
        raise CheckpointError(
            f"{destination} holds {', '.join(foreign[:3])}{more}, which no conversion writes: nothing is replaced, "
            "move it away or choose another destination"
        )
    if content and not _is_converted(destination, config):
        raise CheckpointError(f"{destination} is no converted folder: nothing is replaced, choose another destination")


def _config_of(folder: Path) -> dict[str, Any]:
    """Content of `config.json`; empty if there is none that can be read."""
    try:
        return read_config(folder)
    except (OSError, ValueError):
        return {}


def _is_converted(folder: Path, config: dict[str, Any]) -> bool:
    """Whether a folder of any layout has a card of ours: others are somebody's own model."""
    try:
        layout_of_config(config)
        return "mae-hf verify" in (folder / "README.md").read_text()
    except (OSError, ValueError):
        return False
