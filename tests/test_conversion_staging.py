import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mae_hf.checkpoint import CheckpointError
from mae_hf.conversion.cards import refuse_to_replace
from mae_hf.conversion.staging import _MACHINE
from mae_hf.conversion.staging import staged as staged_if
from tests.helpers import HEAD_OPTIONS, ROOT

OLD, NEW = '{"model_type": "mae", "old": 1}', '{"model_type": "mae", "new": 1}'
DEAD = 2**22 + 1  # no process has such a number on Linux


def staged(destination, **options):
    return staged_if(destination, refuse_to_replace, **options)


def write(folder, text=NEW):
    (folder / "config.json").write_text(text)
    (folder / "README.md").write_text("---\nconverted_with: mae_hf\n---\n")


def test_folder_appears_whole(tmp_path):
    with staged(tmp_path / "deep" / "out") as folder:
        write(folder)
        assert not (tmp_path / "deep" / "out").exists()
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out"]


def test_failure_leaves_everything_as_it_was(tmp_path):
    with staged(tmp_path / "out") as folder:
        write(folder, OLD)
    with pytest.raises(RuntimeError, match="stop"), staged(tmp_path / "out", overwrite=True) as folder:
        write(folder, NEW)
        raise RuntimeError("stop")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "config.json").read_text() == OLD


def test_overwrite_replaces_only_what_a_conversion_writes(tmp_path):
    destination = tmp_path / "out"
    with staged(destination) as folder:
        write(folder, OLD)
    with pytest.raises(CheckpointError, match="already exists: .* --overwrite"), staged(destination):
        pass
    with staged(destination, overwrite=True) as folder:
        write(folder, NEW)
    assert (destination / "config.json").read_text() == NEW
    (destination / "thesis.tex").write_text("mine")
    with pytest.raises(CheckpointError, match=r"contains thesis.tex, which no"), staged(destination, overwrite=True):
        pass
    assert (destination / "thesis.tex").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_empty_folder_may_be_filled_and_a_file_is_left_alone(tmp_path):
    (tmp_path / "empty").mkdir()
    with staged(tmp_path / "empty") as folder:
        write(folder)
    assert (tmp_path / "empty" / "config.json").exists()
    (tmp_path / "file").write_text("mine")
    for place in ("file", "file/below"):
        with pytest.raises(CheckpointError, match="is a file"), staged(tmp_path / place, overwrite=True):
            pass
    assert (tmp_path / "file").read_text() == "mine"


def test_overwrite_leaves_alone_what_is_no_converted_folder(tmp_path):
    for name, content in (("notes", "README.md"), ("other", "config.json")):
        (tmp_path / name).mkdir()
        (tmp_path / name / content).write_text('{"model_type": "vit"}')
        with (
            pytest.raises(CheckpointError, match="not written by"),
            staged(tmp_path / name, overwrite=True),
        ):
            pass
    (tmp_path / "deep" / "config.json").mkdir(parents=True)
    with pytest.raises(CheckpointError, match=r"contains config.json"), staged(tmp_path / "deep", overwrite=True):
        pass


def test_what_a_killed_run_left_is_cleared_or_put_back(tmp_path):
    for process in (DEAD, 10**19):  # the second is no number of a process anywhere
        (tmp_path / f".out.partial-{_MACHINE}-{process}-00000000").mkdir()
    former = tmp_path / f".out.former-{_MACHINE}-{DEAD}-00000000"
    former.mkdir()
    write(former, OLD)
    with pytest.raises(CheckpointError, match="already exists"), staged(tmp_path / "out"):
        pass
    assert (tmp_path / "out" / "config.json").read_text() == OLD
    with staged(tmp_path / "out", overwrite=True) as folder:
        write(folder, NEW)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_two_runs_at_once_do_not_mix_and_folders_of_others_stay(tmp_path):
    others = [".out.partial", f".out.partial-elsewhere-{DEAD}-00000000"]
    for name in others:
        (tmp_path / name).mkdir()
    with pytest.raises(CheckpointError, match="already exists"), staged(tmp_path / "out") as first:
        write(first, OLD)
        with staged(tmp_path / "out") as second:
            assert list(second.iterdir()) == []
            write(second, NEW)
    assert (tmp_path / "out" / "config.json").read_text() == NEW
    assert sorted(path.name for path in tmp_path.iterdir()) == [*others, "out"]


def test_old_folder_survives_whatever_interrupts_the_swap(tmp_path, monkeypatch):
    with staged(tmp_path / "out") as folder:
        write(folder, OLD)
    rename, calls = Path.rename, []

    def interrupted(self, target):
        calls.append(self)
        if len(calls) in (2, 3):  # the new folder does not come, and the old one does not come back at once
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt), staged(tmp_path / "out", overwrite=True) as folder:
        write(folder, NEW)
    (kept,) = tmp_path.iterdir()
    assert (kept / "config.json").read_text() == OLD


def test_one_file_appears_whole_and_replaces_only_a_converted_one(tiny_weights, tmp_path, monkeypatch):
    path = tmp_path / "deep" / "model.pth"
    with staged(path, one_file=True) as place:
        torch.save({"model": tiny_weights}, place)
        assert not path.exists()
    assert [file.name for file in path.parent.iterdir()] == ["model.pth"]
    before = path.read_bytes()
    with pytest.raises(CheckpointError, match="already exists"), staged(path, one_file=True):
        pass
    with pytest.raises(RuntimeError), staged(path, overwrite=True, one_file=True) as place:
        place.write_bytes(b"half")
        raise RuntimeError
    assert path.read_bytes() == before
    with staged(path, overwrite=True, one_file=True) as place:
        place.write_bytes(b"new")
    assert path.read_bytes() == b"new" and len(list(path.parent.iterdir())) == 1
    others = [{"model": tiny_weights, "optimizer": {}}, {"model": {"fc.weight": torch.zeros(1)}}, tiny_weights]
    others.append({"state_dict": tiny_weights})  # of another trainer
    monkeypatch.setattr("mae_hf.checkpoint._WRAPPERS", (("model", ""), ("state_dict", "")))
    for content in others:
        torch.save(content, path)
        with (
            pytest.raises(CheckpointError, match="not written by"),
            staged(path, overwrite=True, one_file=True),
        ):
            pass
    with (
        pytest.raises(CheckpointError, match="is a folder, and the"),
        staged(tmp_path, overwrite=True, one_file=True),
    ):
        pass


def test_downloaded_file_is_not_replaced(tiny_weights, tmp_path):
    path = tmp_path / "mae_visualize_vit_base.pth"
    torch.save({"model": tiny_weights}, path)
    with (
        pytest.raises(CheckpointError, match="not written by"),
        staged(path, overwrite=True, one_file=True),
    ):
        pass


@pytest.mark.parametrize("config", [None, "{", '{"model_type": "bert"}'])
def test_folder_with_our_card_is_replaced_only_with_a_config_of_a_known_layout(tmp_path, config):
    with staged(tmp_path / "out") as folder:
        write(folder)
    (tmp_path / "out" / "config.json").unlink()
    if config:
        (tmp_path / "out" / "config.json").write_text(config)
    with pytest.raises(CheckpointError, match="not written by"), staged(tmp_path / "out", overwrite=True):
        pass


@pytest.mark.parametrize("model_type", ["mae", "vit_mae"])
def test_folder_is_replaced_only_if_a_conversion_wrote_its_card(tmp_path, model_type):
    (tmp_path / "config.json").write_text(f'{{"model_type": "{model_type}"}}')
    for card in (None, "my own model"):
        if card:
            (tmp_path / "README.md").write_text(card)
        with pytest.raises(CheckpointError, match="not written by"), staged(tmp_path, overwrite=True):
            pass


def test_failure_removes_the_parents_it_made(tmp_path):
    (tmp_path / "mine").mkdir()
    with pytest.raises(RuntimeError), staged(tmp_path / "mine" / "new" / "newer" / "out"):
        raise RuntimeError
    assert [path.name for path in tmp_path.rglob("*")] == ["mine"]


@pytest.mark.parametrize("one_file", [False, True])
def test_place_that_the_system_refuses_even_to_root_gives_one_line(one_file):
    with (
        pytest.raises(CheckpointError, match="/proc/out cannot be created") as caught,
        staged(Path("/proc/out"), one_file=one_file),
    ):
        pass
    assert "\n" not in str(caught.value)


def test_loop_of_links_is_refused(tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(CheckpointError, match="cannot be created"), staged(tmp_path / "loop" / "out"):
        pass


def test_full_disk_leaves_nothing(reference, tmp_path):
    """A limit on the size of files stands in for the disk."""
    command = [
        sys.executable,
        "-m",
        "conversion",
        "convert",
        str(reference / "tiny" / "full.pth"),
        str(tmp_path / "out"),
    ]
    command += HEAD_OPTIONS

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    done = subprocess.run(command, preexec_fn=limit, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1 and list(tmp_path.iterdir()) == []
    assert "cannot be written" in done.stderr and done.stderr.count("\n") == 1
