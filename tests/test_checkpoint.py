"""Reading checkpoints: what is accepted, what is refused, and that no code ever runs."""

import argparse
import json
import os
import pathlib
import pickle
import zipfile

import pytest
import torch
from safetensors.torch import save_file
from torch.distributed.device_mesh import DeviceMesh

from mae_hf.checkpoint import CheckpointError, read_checkpoint, read_folder


def test_official_files_are_read_in_their_order(reference, tiny_weights):
    checkpoint = read_checkpoint(reference / "tiny" / "full.pth")
    assert list(checkpoint.state_dict) == list(tiny_weights)
    assert all(torch.equal(checkpoint.state_dict[key], value) for key, value in tiny_weights.items())
    assert checkpoint.fields == {} and checkpoint.checksummed


def test_training_arguments_are_read_from_a_training_checkpoint(reference):
    checkpoint = read_checkpoint(reference / "tiny" / "training_checkpoint.pth")
    assert checkpoint.fields["norm_pix_loss"] is True and checkpoint.fields["mask_ratio"] == 0.75
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


def test_wrapper_of_another_trainer_is_a_line_of_the_table(tiny_weights, tmp_path, monkeypatch):
    prefixed = {f"module.{key}": value for key, value in tiny_weights.items()}
    torch.save({"state_dict": prefixed, "epoch": 3}, tmp_path / "last.ckpt")
    monkeypatch.setattr("mae_hf.checkpoint._WRAPPERS", (("model", ""), ("state_dict", "module."), ("state_dict", "")))
    checkpoint = read_checkpoint(tmp_path / "last.ckpt")
    assert list(checkpoint.state_dict) == list(tiny_weights)
    assert (checkpoint.wrapper, checkpoint.others) == ("state_dict", ("epoch",))
    torch.save({"state_dict": tiny_weights}, tmp_path / "plain.ckpt")
    assert list(read_checkpoint(tmp_path / "plain.ckpt").state_dict) == list(tiny_weights)
    partly = prefixed | {"norm.bias": tiny_weights["norm.bias"]}
    torch.save({"state_dict": partly}, tmp_path / "partly.ckpt")
    assert list(read_checkpoint(tmp_path / "partly.ckpt").state_dict) == list(partly)  # stripped everywhere or nowhere


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
        (lambda path: path.mkdir(), "is a folder: pass the .pth file"),
        (lambda path: path.write_bytes(b""), "is empty: download it again"),
        (lambda path: path.write_bytes(b"abc"), "is damaged or not a PyTorch checkpoint: "),
        (lambda path: path.write_bytes(b"\x80\x02."), "is damaged or not a PyTorch checkpoint: "),
        (lambda path: path.write_bytes(b"<html>404</html>"), "is damaged or not a PyTorch checkpoint"),
        (zip_without_weights, "is damaged or not a PyTorch checkpoint"),
        (lambda path: torch.save({"model": Foreign()}, path), "contains .*print besides weights, which could run code"),
        (lambda path: torch.save({"model": pathlib.Path("x")}, path), "contains pathlib.PosixPath besides weights"),
        (lambda path: torch.save({"model": argparse.Namespace()}, path), "contains no weights"),
        (lambda path: torch.save({"model": {}}, path), "contains no weights"),
        (lambda path: torch.save([1, 2], path), "contains no weights"),
        (lambda path: torch.save({"model": {"a": torch.eye(2).to_sparse()}}, path), "not plain tensors: a"),
        (lambda path: torch.save({"model": {"a": torch.empty(2, device="meta")}}, path), "not plain tensors: a"),
        (lambda path: torch.save({"model": {"a": torch._neg_view(torch.ones(2))}}, path), "not plain tensors: a"),
        (lambda path: torch.save({"model": {"a": torch.zeros(1).expand(9)}}, path), "not plain tensors: a"),
        (lambda path: torch.save({"model": {"epoch": 3}}, path), "contains no state dict: epoch is not a tensor"),
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


def test_folder_without_or_with_damaged_weights_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"contains neither model.safetensors"):
        read_folder(tmp_path)
    save_file({"a": torch.zeros(100)}, tmp_path / "model.safetensors")
    content = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(content[:-10])
    with pytest.raises(CheckpointError, match="is damaged"):
        read_folder(tmp_path)


def test_only_what_from_pretrained_reads_is_read(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    save_file({"a": torch.ones(1)}, tmp_path / "model_old.safetensors")
    assert read_folder(tmp_path).state_dict["a"] == 0
    (tmp_path / "model.safetensors").rename(tmp_path / "model-00001-of-00002.safetensors")
    with pytest.raises(CheckpointError, match=r"contains neither model.safetensors"):
        read_folder(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-00002-of-00002.safetensors"}}')
    with pytest.raises(CheckpointError, match="is damaged: its index names .model-00002-of-00002"):
        read_folder(tmp_path)


def test_sharded_weights_are_read_together_and_only_from_inside_the_folder(tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "pytorch_model-00001-of-00002.bin")
    torch.save({"b": torch.ones(1)}, tmp_path / "pytorch_model-00002-of-00002.bin")
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(
        json.dumps({"weight_map": {key: f"pytorch_model-0000{n}-of-00002.bin" for n, key in ((1, "a"), (2, "b"))}})
    )
    found = read_folder(tmp_path)
    assert found.state_dict == {"a": torch.zeros(1), "b": torch.ones(1)} and found.checksummed
    torch.save({"a": torch.zeros(1)}, tmp_path / "pytorch_model-00002-of-00002.bin")
    with pytest.raises(CheckpointError, match="two of its files contain the same weight"):
        read_folder(tmp_path)
    (tmp_path.parent / "outside.bin").write_bytes(b"")
    index.write_text(json.dumps({"weight_map": {"a": "../outside.bin"}}))
    with pytest.raises(CheckpointError, match="its index names '../outside.bin'"):
        read_folder(tmp_path)
    for text in ("", "[]", "{}", '{"weight_map": [1]}', '{"weight_map": {"a": [1]}}'):
        index.write_text(text)
        with pytest.raises(CheckpointError, match="is damaged"):
            read_folder(tmp_path)


def test_folder_of_pickles_is_read_as_safely_as_a_file(tmp_path):
    torch.save({"a": Foreign()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="contains .*print besides weights, which could run code"):
        read_folder(tmp_path)


class Connection:
    """PyTorch itself would create it: some of its modules, once imported, allow classes that open connections."""

    def __reduce__(self):
        return (DeviceMesh, ("cpu", [0]))


def test_only_the_arguments_of_training_are_allowed_beside_plain_data(tmp_path, tiny_weights):
    allowed = torch.serialization.get_safe_globals()
    assert DeviceMesh in allowed
    torch.save({"model": tiny_weights, "args": {"a": Connection()}}, tmp_path / "connection.pth")
    with pytest.raises(CheckpointError, match="not a PyTorch checkpoint; loading it could run code"):
        read_checkpoint(tmp_path / "connection.pth")
    assert not torch.distributed.is_initialized()
    assert set(torch.serialization.get_safe_globals()) == set(allowed)


class Shell:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.system, (f"touch {self.path}",))


class Evaluated(Shell):
    def __reduce__(self):
        return (eval, (f"open({str(self.path)!r}, 'w')",))


WRITERS = {
    "zip": torch.save,
    "old serialisation": lambda content, path: torch.save(content, path, _use_new_zipfile_serialization=False),
    "protocol 4": lambda content, path: torch.save(content, path, pickle_protocol=4),
    **{
        f"bare pickle {protocol}": lambda content, path, protocol=protocol: path.write_bytes(
            pickle.dumps(content, protocol=protocol)
        )
        for protocol in range(6)
    },
}
NESTINGS = {
    "alone": lambda evil: evil,
    "as the weights": lambda evil: {"model": evil},
    "as a weight": lambda evil: {"model": {"cls_token": evil}},
    "in the arguments": lambda evil: {"model": {}, "args": argparse.Namespace(deep=[{"er": evil}])},
}


@pytest.mark.parametrize(("made", "name"), [(Shell, "system"), (Evaluated, "eval"), (pathlib.PurePosixPath, "Pure")])
@pytest.mark.parametrize("nesting", NESTINGS)
@pytest.mark.parametrize("writer", WRITERS)
def test_code_never_runs_and_is_refused_by_name(tmp_path, made, name, nesting, writer):
    mark, path = tmp_path / "it_ran", tmp_path / "evil.pth"
    WRITERS[writer](NESTINGS[nesting](made(mark)), path)
    message = f"evil.pth contains .*{name}.* besides weights, which could run code"
    if writer not in ("zip", "old serialisation"):  # PyTorch may stop at something else before it
        message = "evil.pth (contains .* besides weights, which could|is damaged or not a PyTorch checkpoint)"
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(path)
    assert not mark.exists()
