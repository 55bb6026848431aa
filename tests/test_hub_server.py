import json
import subprocess
import sys
from inspect import getsource
from pathlib import Path

import pytest
import torch
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
from safetensors.torch import save_file

from tests.hub_server import hub_server


def ask(environment, function, *arguments):
    """What the function returns in a process of its own: the client reads HF_ENDPOINT when it is imported."""
    imports = "import json, sys\nfrom huggingface_hub import *\nfrom huggingface_hub.utils import get_session\n"
    source = imports + "".join(getsource(each) for each in (error, upload, function))
    command = [sys.executable, "-c", f"{source}print(json.dumps({function.__name__}(*sys.argv[1:])))", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def error(call, *arguments, **options):
    try:
        call(*arguments, **options)
    except Exception as error:
        return type(error).__name__


def upload(folder, private=False):
    create_repo("someone/tiny", private=private, exist_ok=True)
    return upload_folder(repo_id="someone/tiny", folder_path=folder).oid


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "README.md").write_text("---\nlicense: mit\n---\n# Tiny\n")
    save_file({"weight": torch.rand(5, 5000)}, tmp_path / "tiny" / "model.safetensors")
    return tmp_path / "tiny"


@pytest.fixture
def hub():
    with hub_server() as hub:
        yield hub
    assert not hub.unknown


def upload_twice_and_download(folder):
    return upload(folder), upload(folder), snapshot_download("someone/tiny")


def download():
    missing = error(hf_hub_download, "someone/tiny", "config.json")
    return snapshot_download("someone/tiny"), hf_hub_download("someone/tiny", "README.md"), missing


def test_folder_comes_back_byte_for_byte_and_offline(folder, tmp_path):
    with hub_server() as hub:
        first, again, downloaded = ask(hub.environment(tmp_path), upload_twice_and_download, folder)
    assert {path.name for path in Path(downloaded).iterdir()} == {".gitattributes", "README.md", "model.safetensors"}
    for path in folder.iterdir():
        assert (Path(downloaded) / path.name).read_bytes() == path.read_bytes()
    assert [commit.sha for commit in hub.repos["someone/tiny"].commits[1:]] == [first] == [again]
    assert sum(request.startswith("PUT /lfs/") for request in hub.requests) == 1 and not hub.unknown
    offline = {**hub.environment(tmp_path), "HF_HUB_OFFLINE": "1"}
    assert ask(offline, download) == [downloaded, f"{downloaded}/README.md", "LocalEntryNotFoundError"]


def read_private(folder):
    upload(folder, private=True)
    calls = [(model_info, []), (hf_hub_download, ["README.md"]), (snapshot_download, [])]
    return [[error(call, "someone/tiny", *more, token=token) for call, more in calls] for token in (False, "no", None)]


def test_private_repository_needs_the_token(hub, folder, tmp_path):
    without, wrong, right = ask(hub.environment(tmp_path), read_private, folder)
    assert hub.repos["someone/tiny"].private
    assert without == ["RepositoryNotFoundError"] * 3 and wrong == ["HfHubHTTPError"] * 3 and right == [None] * 3


def read_revisions(folder):
    first = upload(folder)
    second = upload_file(path_or_fileobj=b"new", path_in_repo="README.md", repo_id="someone/tiny").oid
    upload_file(path_or_fileobj=b"{}", path_in_repo="more/config.json", repo_id="someone/tiny")
    read = []
    for revision in (first, second, "main"):
        path = hf_hub_download("someone/tiny", "README.md", revision=revision)
        read.append([path, list_repo_files("someone/tiny", revision=revision)])
    return model_info("someone/tiny", revision=first).sha == first, read


def test_revisions(hub, folder, tmp_path):
    same, read = ask(hub.environment(tmp_path), read_revisions, folder)
    read = [[Path(path).read_text(), names] for path, names in read]
    old, names = (folder / "README.md").read_text(), [".gitattributes", "README.md", "model.safetensors"]
    assert same and read == [[old, names], ["new", names], ["new", [*names, "more/config.json"]]]


def read_what_is_not_there(folder):
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


def test_what_is_not_there(hub, folder, tmp_path):
    errors, exist = ask(hub.environment(tmp_path), read_what_is_not_there, folder)
    assert errors[:2] == ["RemoteEntryNotFoundError", "RevisionNotFoundError"]
    assert errors[2:] == ["RepositoryNotFoundError"] * 3 + ["HfHubHTTPError"] and exist == [True, False]


def read_part(folder):
    upload(folder)
    part = get_session().get(hf_hub_url("someone/tiny", "README.md"), headers={"Range": "bytes=4-10"})
    return part.status_code, part.text, part.headers["Content-Range"], whoami()["name"]


def test_part_of_a_file_and_who_asks(hub, folder, tmp_path):
    size = (folder / "README.md").stat().st_size
    assert ask(hub.environment(tmp_path), read_part, folder) == [206, "license", f"bytes 4-10/{size}", "someone"]
