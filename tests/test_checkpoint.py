import argparse
import pathlib
import zipfile

import pytest
import torch

from mae_hf.checkpoint import CheckpointError, read_checkpoint


def test_official_files_are_read_in_their_order(reference, tiny_weights):
    checkpoint = read_checkpoint(reference / "tiny" / "full.pth")
    assert list(checkpoint.state_dict) == list(tiny_weights)
    assert all(torch.equal(checkpoint.state_dict[key], value) for key, value in tiny_weights.items())
    assert checkpoint.args == {} and checkpoint.checksummed


def test_training_arguments_are_read_from_a_training_checkpoint(reference):
    checkpoint = read_checkpoint(reference / "tiny" / "training_checkpoint.pth")
    assert checkpoint.args["norm_pix_loss"] is True and checkpoint.args["mask_ratio"] == 0.75
    assert len(checkpoint.state_dict) == 62


def test_old_serialisation_is_read_and_known_to_have_no_checksums(reference, tiny_weights):
    checkpoint = read_checkpoint(reference / "tiny" / "full_legacy.pth")
    assert all(torch.equal(checkpoint.state_dict[key], value) for key, value in tiny_weights.items())
    assert not checkpoint.checksummed


def test_half_precision_stays_half(reference):
    dtypes = {value.dtype for value in read_checkpoint(reference / "tiny" / "full_fp16.pth").state_dict.values()}
    assert dtypes == {torch.float16}


def test_bare_state_dict_is_taken_too(tiny_weights, tmp_path):
    torch.save(tiny_weights, tmp_path / "bare.pth")
    assert list(read_checkpoint(tmp_path / "bare.pth").state_dict) == list(tiny_weights)


def test_changed_byte_in_a_weight_is_noticed(reference, tmp_path):
    content = bytearray((reference / "tiny" / "full.pth").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "changed.pth").write_bytes(content)
    assert torch.load(tmp_path / "changed.pth", weights_only=True)  # PyTorch does not notice
    with pytest.raises(CheckpointError, match=r"changed.pth is damaged \(wrong checksum of .*download it again"):
        read_checkpoint(tmp_path / "changed.pth")


class Foreign:
    def __reduce__(self):
        return (print, ("executed",))


def zip_without_weights(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("hello.txt", "hello")


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.mkdir(), "is a folder: name the .pth file"),
        (lambda path: path.write_bytes(b""), "is empty: download it again"),
        (lambda path: path.write_bytes(b"abc"), "is damaged or no PyTorch checkpoint: "),
        (lambda path: path.write_bytes(b"\x80\x02."), "is damaged or no PyTorch checkpoint: "),
        (lambda path: path.write_bytes(b"<html>404</html>"), "is damaged or no PyTorch checkpoint"),
        (zip_without_weights, "is damaged or no PyTorch checkpoint"),
        (lambda path: torch.save({"model": Foreign()}, path), "holds print beside weights, which could run code"),
        (lambda path: torch.save({"model": pathlib.Path("x")}, path), "holds pathlib.PosixPath beside weights"),
        (lambda path: torch.save({"model": argparse.Namespace()}, path), "holds no weights"),
        (lambda path: torch.save({"model": {}}, path), "holds no weights"),
        (lambda path: torch.save([1, 2], path), "holds no weights"),
        (lambda path: torch.save({"model": {"a": torch.eye(2).to_sparse()}}, path), "no plain tensors: a"),
        (lambda path: torch.save({"model": {"a": torch.empty(2, device="meta")}}, path), "no plain tensors: a"),
        (lambda path: torch.save({"model": {"epoch": 3}}, path), "holds no state dict: epoch is no tensor"),
    ],
)
def test_what_is_no_checkpoint_is_refused_in_one_line(tmp_path, capsys, write, message):
    path = tmp_path / "file.pth"
    write(path)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_checkpoint(path)
    assert "\n" not in str(caught.value) and "file.pth" in str(caught.value)
    assert "executed" not in capsys.readouterr().out


def test_truncated_file_is_refused(reference, tmp_path):
    for name in ("full.pth", "full_legacy.pth"):
        content = (reference / "tiny" / name).read_bytes()
        (tmp_path / name).write_bytes(content[: len(content) // 2])
        with pytest.raises(CheckpointError, match="damaged"):
            read_checkpoint(tmp_path / name)
