import hashlib
import io
import re
import threading
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from huggingface_hub import constants

from mae_hf.checkpoint import CheckpointError
from mae_hf.conversion import releases as module
from mae_hf.conversion.releases import RELEASES, download, md5_of, recognise, release_of_name
from mae_hf.conversion.source import locate

buffer = io.BytesIO()
torch.save({"model": {"cls_token": torch.arange(25_000.0)}}, buffer)
CONTENT = buffer.getvalue()
MD5 = hashlib.md5(CONTENT).hexdigest()
RELEASE = replace(RELEASES[0], md5_prefix=MD5[:6])
ZEROS = {"a.pth": "0" * 32}
PATH = "/mae/pretrain/mae_pretrain_vit_base.pth"


@contextmanager
def serve(answers):
    """A server that has `CONTENT`; an answer says after how many bytes it breaks off, or is a status or a body."""
    requests = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            start = int(re.search(r"\d+", self.headers.get("Range", "0"))[0])
            requests.append((self.path, start))
            answer = answers.pop(0) if answers else len(CONTENT)
            if start >= len(CONTENT):
                answer = 416
            if isinstance(answer, bytes):  # a body of unknown length
                self.send_response(200)
                self.end_headers()
                self.wfile.write(answer)
                self.close_connection = True
                return
            if answer in (404, 416):
                self.send_response(answer)
                self.send_header("Content-Range", f"bytes */{len(CONTENT)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(CONTENT) - start))
            self.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
            self.end_headers()
            self.wfile.write(CONTENT[start : start + answer])
            self.close_connection = True

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/mae/", requests
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 10_000)  # what is lost at most when a connection breaks
    return tmp_path / "hub" / "checkpoints"


@pytest.fixture
def server(monkeypatch):
    @contextmanager
    def start(*answers):
        with serve(list(answers)) as (url, requests):
            monkeypatch.setattr(module, "BASE_URL", url)
            yield requests

    return start


def names(folder):
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("mae_pretrain_vit_huge_full", "pretrain"),
        ("mae_visualize_vit_large_ganloss", "visualize"),
        ("mae_finetuned_vit_base", "finetune"),
    ],
)
def test_official_server_keeps_files_in_folders(name, folder):
    assert release_of_name(name).url.endswith(f"/mae/{folder}/{name}.pth")


def test_file_is_downloaded_once_and_kept(cache, server, monkeypatch):
    with server() as requests:
        path = download(RELEASE)
        assert path.read_bytes() == CONTENT and path.parent == cache and names(cache) == [path.name]
        assert download(RELEASE) == path and requests == [(PATH, 0)]
        monkeypatch.setattr("mae_hf.conversion.releases.RELEASES", (RELEASE,))
        assert locate("mae_pretrain_vit_base") == path and len(requests) == 1


def test_dropped_connection_is_resumed_within_the_run(cache, server):
    with server(50_000, 30_000) as requests:
        assert download(RELEASE).read_bytes() == CONTENT
    assert [start for _, start in requests] == [0, 50_000, 80_000]


def test_interrupted_run_is_continued_by_the_next(cache, server):
    cache.mkdir(parents=True)
    (cache / "mae_pretrain_vit_base.pth.partial").write_bytes(CONTENT[:70_000])
    with server() as requests:
        assert download(RELEASE).read_bytes() == CONTENT
    assert requests == [(PATH, 70_000)] and names(cache) == ["mae_pretrain_vit_base.pth"]


def test_run_killed_between_download_and_check_is_finished_by_the_next(cache, server):
    cache.mkdir(parents=True)
    (cache / "mae_pretrain_vit_base.pth.partial").write_bytes(CONTENT)
    with server():
        assert download(RELEASE).read_bytes() == CONTENT


def test_server_that_always_breaks_off_gives_one_line_and_keeps_what_came(cache, server, monkeypatch):
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)
    with (
        server(40_000, *[0] * 20),
        pytest.raises(CheckpointError, match="kept 40,000 bytes; the next run resumes") as caught,
    ):
        download(RELEASE)
    assert "\n" not in str(caught.value) and names(cache) == ["mae_pretrain_vit_base.pth.partial"]
    with server() as requests:
        assert download(RELEASE).read_bytes() == CONTENT
    assert requests == [(PATH, 40_000)]


def test_wrong_hash_or_size_is_refused_and_not_kept(cache, server):
    for wrong, reason in (
        (replace(RELEASE, md5_prefix="8cad7c"), f"its md5 is {MD5}, that of the release begins with 8cad7c"),
        (replace(RELEASE, num_bytes=1_000), f"it has {len(CONTENT):,} bytes, not 1,000; it was deleted"),
    ):
        with server(), pytest.raises(CheckpointError, match=f"is not mae_pretrain_vit_base: {reason}"):
            download(wrong)
        assert names(cache) == []


@pytest.mark.parametrize("body", [b"<html>please log in</html>", CONTENT[:-1000]])
def test_answer_that_is_no_checkpoint_is_not_kept_although_no_md5_is_published(cache, server, body):
    release = replace(RELEASE, md5_prefix=None)
    with server(body), pytest.raises(CheckpointError, match=r"is not mae_pretrain_vit_base: .*; it was deleted"):
        download(release)
    assert names(cache) == []
    with server():
        assert download(release).read_bytes() == CONTENT


def test_partial_file_that_is_longer_than_the_whole_is_dropped(cache, server):
    cache.mkdir(parents=True)
    (cache / "mae_pretrain_vit_base.pth.partial").write_bytes(CONTENT + b"more")
    with server() as requests:
        assert download(RELEASE).read_bytes() == CONTENT
    assert [start for _, start in requests] == [len(CONTENT) + 4, 0] and names(cache) == ["mae_pretrain_vit_base.pth"]


def test_file_in_the_cache_that_is_another_is_named_and_left_alone(cache):
    cache.mkdir(parents=True)
    (cache / "mae_pretrain_vit_base.pth").write_bytes(b"something else")
    with pytest.raises(CheckpointError, match=r"mae_pretrain_vit_base.pth is not mae_pretrain_vit_base: its md5 is"):
        download(RELEASE)
    assert (cache / "mae_pretrain_vit_base.pth").read_bytes() == b"something else"


def test_file_that_the_server_does_not_have_gives_one_line(cache, server):
    with (
        server(404),
        pytest.raises(CheckpointError, match=r"mae_pretrain_vit_base.pth cannot be downloaded: .*404") as e,
    ):
        download(RELEASE)
    assert "\n" not in str(e.value) and names(cache) == []


def test_server_that_does_not_answer_gives_one_line(cache, monkeypatch):
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)
    monkeypatch.setattr(module, "BASE_URL", "http://127.0.0.1:1/")
    with pytest.raises(CheckpointError, match=r"http://127.0.0.1:1/pretrain/.* cannot be downloaded"):
        download(RELEASE)
    assert names(cache) == []


def test_published_md5_decides_whatever_the_name(tmp_path):
    (tmp_path / "mae_visualize_vit_base.pth").write_bytes(b"x")
    md5 = {"a.pth": "8cad7c" + "0" * 26}
    found = recognise(tmp_path / "mae_visualize_vit_base.pth", md5, "pretraining", "base")
    assert found.name == "mae_pretrain_vit_base" and found.matches(md5)


def test_without_its_md5_name_and_shapes_and_bytes_decide_and_prove_nothing(tmp_path):
    resaved = tmp_path / "mae_pretrain_vit_base.pth"
    resaved.write_bytes(b"x")
    found = recognise(resaved, ZEROS, "encoder", "base")
    assert found.name == "mae_pretrain_vit_base" and not found.matches(ZEROS)
    assert recognise(resaved, ZEROS, "encoder", "large") is None
    path = tmp_path / "mae_visualize_vit_base.pth"
    path.write_bytes(b"x")
    assert recognise(path, ZEROS, "pretraining", "base").norm_pix_loss is False
    assert recognise(path, ZEROS, "encoder", "base") is None
    assert recognise(path, ZEROS, "pretraining", None) is None
    large = tmp_path / "mae_visualize_vit_large.pth"
    large.write_bytes(b"x")
    folder = tmp_path / "mae_visualize_vit_huge"
    folder.mkdir()
    assert recognise(folder, ZEROS, "pretraining", "huge") is None  # made of something, or trained
    assert recognise(large, ZEROS, "pretraining", "large") is None  # 1,318,315,181 bytes are published


def test_visualize_files_predict_raw_pixels_and_the_others_normalised_ones():
    assert {release.name for release in RELEASES if not release.norm_pix_loss} == {
        "mae_visualize_vit_base",
        "mae_visualize_vit_large",
        "mae_visualize_vit_huge",
        "mae_visualize_vit_large_ganloss",
    }


@pytest.mark.parametrize("content", [b"", b"mae" * 1000])
def test_md5_of_a_file(tmp_path, content):
    (tmp_path / "file").write_bytes(content)
    assert md5_of(tmp_path / "file") == hashlib.md5(content).hexdigest()
