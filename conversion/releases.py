"""The released files of the official repository: the catalogue, recognising one, and downloading it.

Sources: README.md and FINETUNE.md of facebookresearch/mae, its visualisation notebook, its issues 3, 8, 191 and 193.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from filelock import FileLock
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.file_download import http_get

from mae_hf.checkpoint import CheckpointError, fetch_folder, first_line, read_checkpoint

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_WEIGHT_FILES = (".pth", ".pt", ".bin", ".safetensors")
BASE_URL = "https://dl.fbaipublicfiles.com/mae/"


@dataclass(frozen=True)
class Release:
    """A released file.

    Attributes:
        name: File name without `.pth`.
        kind: "encoder", "pretraining" or "finetuned".
        preset: Size of the model.
        norm_pix_loss: Whether the weights were trained on normalised pixels.
        md5_prefix: First six digits of the md5, where published.
        num_bytes: Size of the file, where published.
        accuracy: Top-1 and top-5 on the validation images of ImageNet-1k in percent, where the file itself was
            evaluated (FINETUNE.md).
    """

    name: str
    kind: str
    preset: str
    norm_pix_loss: bool
    md5_prefix: str | None = None
    num_bytes: int | None = None
    accuracy: tuple[float, float] | None = None
    license: ClassVar[str] = "cc-by-nc-4.0"  # that of the official repository

    @property
    def url(self) -> str:
        """Address on the official server."""
        folder = self.name.split("_")[1].replace("finetuned", "finetune")
        return f"{BASE_URL}{folder}/{self.name}.pth"

    def matches(self, md5s: Mapping[str, str]) -> bool:
        """Whether exactly one file was read, and its md5 begins with the published prefix."""
        return [self.md5_prefix] == [md5[:6] for md5 in md5s.values()]

    def recognised_by(self, md5s: Mapping[str, str]) -> str:
        """Say how a file was recognised as this release."""
        if self.matches(md5s):
            return "its md5"
        return f"its name and shapes{'; its md5 is not the published one' if self.md5_prefix else ''}"


RELEASES = (
    Release("mae_pretrain_vit_base", "encoder", "base", True, "8cad7c"),
    Release("mae_pretrain_vit_large", "encoder", "large", True, "b8b06e"),
    Release("mae_pretrain_vit_huge", "encoder", "huge", True, "9bdbb0"),
    Release("mae_pretrain_vit_base_full", "pretraining", "base", True),
    Release("mae_pretrain_vit_large_full", "pretraining", "large", True),
    Release("mae_pretrain_vit_huge_full", "pretraining", "huge", True),
    Release("mae_visualize_vit_base", "pretraining", "base", False),
    Release("mae_visualize_vit_large", "pretraining", "large", False, num_bytes=1_318_315_181),
    Release("mae_visualize_vit_huge", "pretraining", "huge", False),
    Release("mae_visualize_vit_large_ganloss", "pretraining", "large", False),
    Release("mae_finetuned_vit_base", "finetuned", "base", True, "1b25e9", accuracy=(83.664, 96.530)),
    Release("mae_finetuned_vit_large", "finetuned", "large", True, "51f550", accuracy=(85.952, 97.570)),
    Release("mae_finetuned_vit_huge", "finetuned", "huge", True, "2541f2", accuracy=(86.928, 98.088)),
)


def release_of_name(name: str) -> Release | None:
    """Return the release with this file name, without `.pth`, or None."""
    return next((release for release in RELEASES if release.name == name), None)


def md5_of(path: Path) -> str:
    """Compute the md5 of a file, 32 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def recognise(path: Path, md5s: Mapping[str, str], kind: str, preset: str | None) -> Release | None:
    """Return the released file that a local file is, or None.

    By md5; otherwise by file name, if kind, sizes and (where published) the number of bytes agree.

    Args:
        path: File; a folder is never a released file.
        md5s: Of the files that were read.
        kind: Of the weights.
        preset: Size with which the weights agree in everything that released files have in common, or None.
    """
    if not path.is_file():  # a folder was converted from something, or trained
        return None
    if release := next((release for release in RELEASES if release.matches(md5s)), None):
        return release
    release = release_of_name(path.stem)
    if release is None or (release.kind, release.preset) != (kind, preset):
        return None
    return release if release.num_bytes in (None, path.stat().st_size) else None


def locate(name: str | Path) -> Path:
    """Return the file or folder of a name; a released file or a Hub repository is downloaded into the cache.

    Raises:
        CheckpointError: If it does not exist, or the download fails.
    """
    path = Path(name)
    if path.exists():
        return path
    if release := release_of_name(str(name)):
        return download(release)
    if path.suffix in _WEIGHT_FILES or not _HUB_ID.fullmatch(str(name)):
        hint = f"; without .pth, {path.stem} would be downloaded" if release_of_name(path.stem) else ""
        raise CheckpointError(f"{path} does not exist{hint}")
    try:
        return fetch_folder(str(name))
    except Exception as error:  # the client raises errors of many libraries
        raise CheckpointError(f"{name} is not a local file or folder, nor on the Hub: {first_line(error)}") from error


def download(release: Release) -> Path:
    """Download a released file, with a progress bar, unless it is in the cache.

    The cache is `checkpoints` in PyTorch's hub folder (`$TORCH_HOME/hub`), where `torch.hub` keeps such files. An
    interrupted download is resumed.

    Raises:
        CheckpointError: If the server does not answer or lacks the file, or if the md5 or size of the downloaded file
            is not the published one.
    """
    path = Path(torch.hub.get_dir()) / "checkpoints" / f"{release.name}.pth"
    partial = path.with_suffix(".pth.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{partial}.lock"):  # another process may be downloading it
        if path.exists():
            if problem := _problem(path, release):
                raise CheckpointError(f"{path} is not {release.name}: {problem}; delete it to download it again")
            return path
        try:
            _fetch(release.url, partial)
        except Exception as error:  # the client raises errors of several libraries
            reason = first_line(error)
            if partial.exists():
                reason += f"; kept {partial.stat().st_size:,} bytes; the next run resumes"
            raise CheckpointError(f"{release.url} cannot be downloaded: {reason}") from error
        if problem := _problem(partial, release):
            partial.unlink()
            raise CheckpointError(f"the answer of {release.url} is not {release.name}: {problem}; it was deleted")
        partial.rename(path)
    return path


def _fetch(url: str, partial: Path) -> None:
    try:
        with partial.open("ab") as file:
            http_get(url, file, resume_size=file.tell())
    except HfHubHTTPError as error:
        if error.response.status_code != 416 or not partial.exists():
            raise
        partial.unlink()  # nothing is left to resume: it was complete, or longer than the file on the server
        _fetch(url, partial)
    finally:
        if partial.exists() and partial.stat().st_size == 0:
            partial.unlink()


def _problem(path: Path, release: Release) -> str | None:
    """Say why a file is not the release; None if nothing contradicts it."""
    if release.num_bytes not in (None, found := path.stat().st_size):
        return f"it has {found:,} bytes, not {release.num_bytes:,}"
    if release.md5_prefix is not None and not (md5 := md5_of(path)).startswith(release.md5_prefix):
        return f"its md5 is {md5}, that of the release begins with {release.md5_prefix}"
    try:
        read_checkpoint(path)
    except CheckpointError as error:
        return str(error)
    return None
