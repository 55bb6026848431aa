"""Reading what is to be converted: an official file, or a folder of any layout, or one of the two by its name."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from torch import Tensor

from mae_hf.checkpoint import CheckpointError, fetch_folder, first_line, read_checkpoint, read_config, read_folder

from .catalogue import RELEASES
from .download import download
from .kinds import kind_of
from .layouts import OFFICIAL, TIMM, as_whole_model, layout_of_config, layout_of_keys

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_WEIGHT_FILES = (".pth", ".pt", ".bin", ".safetensors")


@dataclass(frozen=True)
class Source:
    """Weights as they were found.

    Attributes:
        path: File or folder.
        name: What to call it: the name of the file or folder, or the Hub id, in one line of plain text.
        layout: "official", "mae_hf", "vit_mae" or "timm".
        kind: "pretraining", "encoder", "finetuned", "finetuned_cls" or "linprobe".
        state_dict: Weights under the names of the layout, in the order of the file.
        files: The files that were read.
        args: Training arguments in the file, empty if there are none.
        others: What else the file holds beside the weights, such as "optimizer" and "args".
        fields: Content of the folder's `config.json`, empty for a file.
        checksummed: Whether the files carry checksums, which were then checked.
        license: What the folder's card says, or None.
    """

    path: Path
    name: str
    layout: str
    kind: str
    state_dict: dict[str, Tensor]
    files: tuple[Path, ...]
    args: Mapping[str, Any] = field(default_factory=dict)
    fields: Mapping[str, Any] = field(default_factory=dict)
    others: tuple[str, ...] = ()
    checksummed: bool = True
    license: str | None = None


def locate(name: str | Path) -> Path:
    """The file or folder of that name; a released file or a repository of the Hub is downloaded into the cache.

    Raises:
        CheckpointError: If there is nothing of that name, or the download fails.
    """
    path = Path(name)
    if path.exists():
        return path
    releases = {release.name: release for release in RELEASES}
    if str(name) in releases:
        return download(releases[str(name)])
    if path.suffix in _WEIGHT_FILES or not _HUB_ID.fullmatch(str(name)):
        hint = f"; without .pth, {path.stem} would be downloaded" if path.stem in releases else ""
        raise CheckpointError(f"{path} does not exist{hint}")
    try:
        return fetch_folder(str(name))
    except Exception as error:  # the client raises errors of many libraries
        raise CheckpointError(f"{name} is no file or folder here, nor on the Hub: {first_line(error)}") from error


def read_source(name: str | Path) -> Source:
    """Read a file or folder.

    Args:
        name: `.pth`, `.bin` or `.safetensors` file with official keys, folder, name of a released file, or Hub id.

    Raises:
        CheckpointError: If there is no such thing, it is damaged, or it belongs to another model.
    """
    path = locate(name)
    if path.is_dir():
        return _read_folder(path, path.resolve().name if path == Path(name) else str(name))
    return _read_file(path)


def _read_file(path: Path) -> Source:
    found = read_checkpoint(path)
    try:
        weights = as_whole_model(found.state_dict)
        layout = layout_of_keys(weights)
        if layout != OFFICIAL:
            raise CheckpointError(f"its keys are those of the {layout} layout: name the folder with its config.json")
    except ValueError as error:
        raise CheckpointError(f"{path} is not taken: {error}") from error
    return Source(
        path=path,
        name=_plain(path.name),
        layout=layout,
        kind=kind_of(weights),
        state_dict=weights,
        files=found.files,
        args=found.args,
        others=found.others,
        checksummed=found.checksummed,
    )


def _read_folder(path: Path, name: str) -> Source:
    fields = read_config(path)
    found = read_folder(path)
    try:
        weights = as_whole_model(found.state_dict)
        layout, by_keys = layout_of_config(fields), layout_of_keys(weights)
        if by_keys != (OFFICIAL if layout == TIMM else layout):
            raise CheckpointError(f"its config is that of the {layout} layout, its keys are of the {by_keys} layout")
    except ValueError as error:
        raise CheckpointError(f"{path} is not taken: {error}") from error
    return Source(
        path=path,
        name=_plain(name),
        layout=layout,
        kind=kind_of(weights),
        state_dict=weights,
        files=found.files,
        fields=fields,
        checksummed=found.checksummed,
        license=_license_of(path / "README.md"),
    )


def _license_of(card: Path) -> str | None:
    """Licence in the metadata of a card, or None: a card is written by hand and may hold anything."""
    try:
        license = ModelCard.load(card, ignore_metadata_errors=True).data.license
    except Exception:
        return None
    return license if isinstance(license, str) else None


def _plain(name: str) -> str:
    """A name without what would break a table in a card."""
    return re.sub(r"[\s|`]+", " ", name)
