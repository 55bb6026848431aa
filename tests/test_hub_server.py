"""The Hub of the tests answers the real client as the real one does."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.helpers import run_program
from tests.helpers.hub_server import hub_server


def ask(environment, *command):
    """What a command of tests/programs/hub_client.py returns."""
    return json.loads(run_program("hub_client", *command, env=environment).stdout)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "README.md").write_text("---\nlicense: mit\n---\n# Tiny\n")
    save_file({"weight": torch.rand(5, 5000)}, tmp_path / "tiny" / "model.safetensors")
    return tmp_path / "tiny"


def test_folder_comes_back_byte_for_byte_and_offline(folder, tmp_path):
    with hub_server() as hub:
        first, again, downloaded = ask(hub.environment(tmp_path), "upload_twice_and_download", folder)
    assert {path.name for path in Path(downloaded).iterdir()} == {".gitattributes", "README.md", "model.safetensors"}
    for path in folder.iterdir():
        assert (Path(downloaded) / path.name).read_bytes() == path.read_bytes()
    assert [commit.sha for commit in hub.repos["someone/tiny"].commits[1:]] == [first] == [again]
    assert sum(request.startswith("PUT /lfs/") for request in hub.requests) == 1 and not hub.unknown
    offline = {**hub.environment(tmp_path), "HF_HUB_OFFLINE": "1"}
    assert ask(offline, "download") == [downloaded, f"{downloaded}/README.md", "LocalEntryNotFoundError"]


def test_private_repository_needs_the_token(hub, folder, tmp_path):
    without, wrong, right = ask(hub.environment(tmp_path), "read_private", folder)
    assert hub.repos["someone/tiny"].private
    assert without == ["RepositoryNotFoundError"] * 3 and wrong == ["HfHubHTTPError"] * 3 and right == [None] * 3


def test_revisions(hub, folder, tmp_path):
    same, read = ask(hub.environment(tmp_path), "read_revisions", folder)
    read = [[Path(path).read_text(), names] for path, names in read]
    old, names = (folder / "README.md").read_text(), [".gitattributes", "README.md", "model.safetensors"]
    assert same and read == [[old, names], ["new", names], ["new", [*names, "more/config.json"]]]


def test_what_is_not_there(hub, folder, tmp_path):
    errors, exist = ask(hub.environment(tmp_path), "read_what_is_missing", folder)
    assert errors[:2] == ["RemoteEntryNotFoundError", "RevisionNotFoundError"]
    assert errors[2:] == ["RepositoryNotFoundError"] * 3 + ["HfHubHTTPError"] and exist == [True, False]


def test_part_of_a_file_and_who_asks(hub, folder, tmp_path):
    size = (folder / "README.md").stat().st_size
    found = ask(hub.environment(tmp_path), "read_part", folder)
    assert found == [206, "license", f"bytes 4-10/{size}", "someone"]
