"""Calls of huggingface_hub, printed as JSON: `hub_client.py COMMAND ARGUMENTS`; a command is a function here.

The client reads HF_ENDPOINT when it is imported, so it needs a process of its own.
"""

import json
import sys

from huggingface_hub import (
    create_repo,
    file_exists,
    hf_hub_download,
    hf_hub_url,
    list_repo_files,
    model_info,
    snapshot_download,
    upload_file,
    upload_folder,
    whoami,
)
from huggingface_hub.utils import get_session


def error(call, *arguments, **options):
    """The name of the exception that a call raises; None if it raises none."""
    try:
        call(*arguments, **options)
    except Exception as error:
        return type(error).__name__


def upload(folder, private=False):
    create_repo("someone/tiny", private=private, exist_ok=True)
    return upload_folder(repo_id="someone/tiny", folder_path=folder).oid


def upload_twice_and_download(folder):
    return upload(folder), upload(folder), snapshot_download("someone/tiny")


def download():
    missing = error(hf_hub_download, "someone/tiny", "config.json")
    return snapshot_download("someone/tiny"), hf_hub_download("someone/tiny", "README.md"), missing


def read_private(folder):
    upload(folder, private=True)
    calls = [(model_info, []), (hf_hub_download, ["README.md"]), (snapshot_download, [])]
    return [[error(call, "someone/tiny", *more, token=token) for call, more in calls] for token in (False, "no", None)]


def read_revisions(folder):
    first = upload(folder)
    second = upload_file(path_or_fileobj=b"new", path_in_repo="README.md", repo_id="someone/tiny").oid
    upload_file(path_or_fileobj=b"{}", path_in_repo="more/config.json", repo_id="someone/tiny")
    read = []
    for revision in (first, second, "main"):
        path = hf_hub_download("someone/tiny", "README.md", revision=revision)
        read.append([path, list_repo_files("someone/tiny", revision=revision)])
    return model_info("someone/tiny", revision=first).sha == first, read


def read_what_is_missing(folder):
    upload(folder)
    errors = [
        error(hf_hub_download, "someone/tiny", "config.json"),
        error(hf_hub_download, "someone/tiny", "README.md", revision="v2"),
        error(model_info, "someone/other"),
        error(model_info, "other"),
        error(upload_file, path_or_fileobj=b"", path_in_repo="a", repo_id="someone/tiny", token=False),
        error(create_repo, "tiny"),
    ]
    return errors, [file_exists("someone/tiny", name) for name in ("README.md", "config.json")]


def read_part(folder):
    upload(folder)
    part = get_session().get(hf_hub_url("someone/tiny", "README.md"), headers={"Range": "bytes=4-10"})
    return part.status_code, part.text, part.headers["Content-Range"], whoami()["name"]


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]](*sys.argv[2:])))
