"""Download of released files into the cache that the official code uses as well."""

from pathlib import Path

import torch
from filelock import FileLock
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.file_download import http_get

from mae_hf.checkpoint import CheckpointError, first_line, read_checkpoint

from .catalogue import Release, md5_of

BASE_URL = "https://dl.fbaipublicfiles.com/mae/"


def download(release: Release) -> Path:
    """Download a released file, with a progress bar, unless it is in the cache.

    The cache is `checkpoints` in PyTorch's hub folder (`$TORCH_HOME/hub`), where `torch.hub` keeps such files. What an
    interrupted download has left is continued.

    Raises:
        CheckpointError: If the server does not answer or has no such file, or what came has another md5 or size than is
            published.
    """
    path = Path(torch.hub.get_dir()) / "checkpoints" / f"{release.name}.pth"
    partial = path.with_suffix(".pth.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{partial}.lock"):  # another process may be at it
        if path.exists():
            if problem := _problem(path, release):
                raise CheckpointError(f"{path} is not {release.name}: {problem}; delete it to download it again")
            return path
        url = f"{BASE_URL}{release.folder}/{path.name}"
        try:
            _fetch(url, partial)
        except Exception as error:  # the client raises errors of several libraries
            reason = first_line(error)
            if partial.exists():
                reason += f"; the {partial.stat().st_size:,} bytes that came are kept, the next run goes on from there"
            raise CheckpointError(f"{url} cannot be downloaded: {reason}") from error
        if problem := _problem(partial, release):
            partial.unlink()
            raise CheckpointError(f"what {url} sent is not {release.name}: {problem}; it was deleted")
        partial.rename(path)
    return path


def _fetch(url: str, partial: Path) -> None:
    try:
        with partial.open("ab") as file:
            http_get(url, file, resume_size=file.tell())
    except HfHubHTTPError as error:
        if error.response.status_code != 416:
            raise
        if not _is_whole(partial, error.response.headers.get("Content-Range")):  # more than the server has
            partial.unlink()
            raise
    finally:
        if partial.exists() and partial.stat().st_size == 0:
            partial.unlink()


def _is_whole(partial: Path, content_range: str | None) -> bool:
    """Whether nothing was left to ask for: the answer is then "bytes */SIZE"."""
    return (content_range or "").rpartition("/")[2] == str(partial.stat().st_size)


def _problem(path: Path, release: Release) -> str | None:
    """What shows that a file is not the release, or None."""
    if release.num_bytes not in (None, found := path.stat().st_size):
        return f"it has {found:,} bytes, not {release.num_bytes:,}"
    if release.md5_prefix is not None and not (md5 := md5_of(path)).startswith(release.md5_prefix):
        return f"its md5 is {md5}, that of the release begins with {release.md5_prefix}"
    try:
        read_checkpoint(path)
    except CheckpointError as error:
        return str(error)
    return None
