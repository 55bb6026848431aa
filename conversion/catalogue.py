"""The released files of the official repository, and how to recognise one.

Sources: README.md and FINETUNE.md of facebookresearch/mae, its visualisation notebook, its issues 3, 8, 191 and 193.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

LICENSE = "cc-by-nc-4.0"  # of the official repository and the released files


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

    @property
    def folder(self) -> str:
        """Where the official server keeps it."""
        return self.name.split("_")[1].replace("finetuned", "finetune")


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


def md5_of(path: Path) -> str:
    """The md5 of a file, 32 hexadecimal digits."""
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def md5s_of(files: Iterable[Path]) -> dict[str, str]:
    """The md5 of each file by its name."""
    return {file.name: md5_of(file) for file in files}


def recognise(path: Path, md5s: Mapping[str, str], kind: str, preset: str | None) -> Release | None:
    """The released file that a local file is, or None.

    By md5, which proves it; else by file name, if kind, sizes and (where published) the number of bytes agree.

    Args:
        path: File; nothing else is a released one.
        md5s: Of the files that were read.
        kind: Of the weights.
        preset: Whose sizes the weights have in all that the released files have in common, or None.
    """
    if not path.is_file():  # a folder was made from something, or trained
        return None
    for release in RELEASES:
        if is_proven(release, md5s):
            return release
    for release in RELEASES:
        same_bytes = release.num_bytes in (None, path.stat().st_size)
        if (release.name, release.kind, release.preset) == (path.stem, kind, preset) and same_bytes:
            return release
    return None


def is_proven(release: Release, md5s: Mapping[str, str]) -> bool:
    """Whether a published md5 says that the one file that was read is this release, and not its name alone."""
    prefix = release.md5_prefix
    return prefix is not None and len(md5s) == 1 and next(iter(md5s.values())).startswith(prefix)


def recognised_by(release: Release, md5s: Mapping[str, str]) -> str:
    """What a file was recognised by."""
    if is_proven(release, md5s):
        return "its md5"
    return f"its name and shapes{'; its md5 is not the published one' if release.md5_prefix else ''}"
