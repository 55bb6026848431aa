"""Atomic writing: a folder or file appears whole or not at all."""

import os
import platform
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mae_hf.checkpoint import CheckpointError

Refuse = Callable[[Path], str | None]
_MACHINE = re.sub(r"\W", "_", platform.node())


@contextmanager
def staged(destination: Path, refuse: Refuse, *, overwrite: bool = False, one_file: bool = False) -> Iterator[Path]:
    """Yield a temporary sibling path; rename it to the destination on success.

    What a terminated process left behind is removed or, if it was about to replace a folder, restored.

    Args:
        destination: The folder or file to write.
        refuse: Returns why what exists at the destination may not be replaced, or None.
        overwrite: Replace what exists at the destination.
        one_file: Yield the path of a file to write, not a folder.

    Raises:
        CheckpointError: If the destination exists and may not be replaced, or cannot be written.
    """
    destination = check_destination(destination, refuse, overwrite=overwrite, one_file=one_file)
    # the name holds machine and process, so that a later run can find out whether this one is still running
    beside = f".{destination.name}.{{}}-{_MACHINE}-{os.getpid()}-{secrets.token_hex(4)}"
    staging, former = (destination.with_name(beside.format(what)) for what in ("partial", "former"))
    new_parents = [parent for parent in destination.parents if not parent.exists()]
    try:
        try:
            destination.parent.mkdir(parents=True, exist_ok=True)
            staging.touch() if one_file else staging.mkdir()
        except OSError as error:
            raise CheckpointError(f"{destination} cannot be created: {error}") from error
        yield staging
        check_destination(destination, refuse, overwrite=overwrite, one_file=one_file)  # another run may have finished
        if one_file:
            staging.replace(destination)  # atomic
            return
        if overwrite and destination.exists():
            destination.rename(former)
        staging.rename(destination)  # fails if another folder has appeared there
    except BaseException:
        if former.exists() and not destination.exists():
            former.rename(destination)
        raise
    finally:
        _remove(staging)
        if destination.exists():
            _remove(former)
        for parent in () if destination.exists() else new_parents:
            with suppress(OSError):  # something else is in it
                parent.rmdir()


def check_destination(destination: Path, refuse: Refuse, *, overwrite: bool = False, one_file: bool = False) -> Path:
    """Resolve links and clean up after terminated runs; arguments and errors are those of `staged`."""
    try:
        destination = destination.resolve()
        _clean_up(destination)
        for parent in destination.parents:
            if parent.exists() and not parent.is_dir():
                raise CheckpointError(f"{destination} cannot be created: {parent} is a file")
        if destination.exists():
            _check_existing(destination, refuse, overwrite, one_file)
    except (OSError, RuntimeError) as error:  # no permission, a loop of links
        raise CheckpointError(f"{destination} cannot be created: {error}") from error
    return destination


def _check_existing(destination: Path, refuse: Refuse, overwrite: bool, one_file: bool) -> None:
    if one_file == destination.is_dir():
        found, result = ("a folder", "a file") if one_file else ("a file", "a folder")
        raise CheckpointError(f"{destination} is {found}, and the result is {result}: choose another destination")
    if destination.is_dir() and not any(destination.iterdir()):
        return
    if not overwrite:
        raise CheckpointError(f"{destination} already exists: choose another destination, or pass --overwrite")
    if reason := refuse(destination):
        raise CheckpointError(f"{destination} {reason}: nothing is replaced, choose another destination")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _clean_up(destination: Path) -> None:
    """Remove or restore what terminated processes left on this host."""
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
