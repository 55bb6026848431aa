"""examples/export_onnx.py: what onnxruntime computes with its files, and what it refuses."""

import json
import math
import sys
from pathlib import Path

import pytest
import torch

from examples.export_onnx import largest_difference, main
from mae_hf import MAEBackbone, MAEForImageClassification, MAEForPreTraining, MAEModel, block_masking

pytestmark = pytest.mark.heavy  # needs onnx, onnxscript and onnxruntime, which `make test-all` installs

EXACT = ["mask", "ids_restore"]


@pytest.fixture
def out(tmp_path):
    """Path of the output, in an empty directory."""
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "model.onnx"


@pytest.fixture
def folder(tmp_path, tiny_model):
    """The folder of the tiny pretraining model."""
    tiny_model(norm_pix_loss=True).save_pretrained(tmp_path / "mae")
    return tmp_path / "mae"


def run(path, **inputs):
    """The outputs of onnxruntime for a file, by name."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [given.name for given in session.get_inputs()] == list(inputs)
    found = session.run(None, {name: value.numpy() for name, value in inputs.items()})
    return {output.name: torch.tensor(value) for output, value in zip(session.get_outputs(), found, strict=True)}


@torch.no_grad()
def assert_as_pytorch(path, model, **inputs):
    """The file gives the outputs of the model within 1e-4; `mask` and `ids_restore` are equal."""
    found, expected = run(path, **inputs), model.eval()(**inputs)
    assert list(found) == list(expected)
    for name in expected:
        tolerance = 0 if name in EXACT else 1e-4
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=tolerance)


def test_pretraining_model_takes_the_noise_of_the_caller(folder, out, capsys):
    assert main([str(folder), str(out)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed] == ["loss", "logits", "mask", "ids_restore"]
    assert all(float(line.split()[-1]) <= 1e-4 for line in printed)
    assert list(out.parent.iterdir()) == [out]
    model = MAEForPreTraining.from_pretrained(folder)
    for batch in (1, 5):
        assert_as_pytorch(out, model, pixel_values=torch.randn(batch, 3, 32, 32), noise=torch.rand(batch, 16))


def test_noise_of_0_and_1_is_a_mask(folder, out):
    assert main([str(folder), str(out)]) == 0
    model = MAEForPreTraining.from_pretrained(folder).eval()
    images, mask = torch.randn(4, 3, 32, 32), block_masking(4, model.config.grid_size)
    assert_as_pytorch(out, model, pixel_values=images, noise=mask.float())  # equal values: the sort must be stable
    found = run(out, pixel_values=images, noise=mask.float())
    assert torch.equal(found["mask"].bool(), mask)
    torch.testing.assert_close(found["logits"], model(images, bool_masked_pos=mask).logits, rtol=0, atol=1e-4)


def test_encoder_of_a_pretraining_model(folder, out):
    assert main([str(folder), str(out), "--encoder"]) == 0
    assert_as_pytorch(out, MAEModel.from_pretrained(folder), pixel_values=torch.randn(5, 3, 32, 32))


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_encoder_in_another_opset_from_a_folder_in_bfloat16(tiny_config, tmp_path, out, pooling):
    import onnx

    config = tiny_config(image_size=(16, 40), num_channels=1, pooling=pooling, output_hidden_states=True)
    model = MAEModel(config).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "encoder")
    assert main([str(tmp_path / "encoder"), str(out), "--opset", "23"]) == 0
    assert onnx.load(out).opset_import[0].version == 23
    model.config.output_hidden_states = False
    assert_as_pytorch(out, model.float(), pixel_values=torch.randn(5, 1, 16, 40))


@pytest.mark.parametrize("changes", [{}, {"pooling": "cls", "linear_probe": True}], ids=str)
def test_classifier(tiny_config, tmp_path, out, changes):
    model = MAEForImageClassification(tiny_config(num_labels=7, **changes))
    for weights in model.head.parameters():
        torch.nn.init.normal_(weights)  # those of a new head are so small that all outputs would be nearly equal
    model.save_pretrained(tmp_path / "classifier")
    assert main([str(tmp_path / "classifier"), str(out)]) == 0
    assert_as_pytorch(out, model, pixel_values=torch.randn(5, 3, 32, 32))


def test_weights_too_large_for_one_file_lie_beside_it(folder, out, monkeypatch):
    monkeypatch.setattr("torch.onnx._internal.exporter._onnx_program._LARGE_MODEL_THRESHOLD", 10_000)  # bytes
    assert main([str(folder), str(out)]) == 0
    assert sorted(path.name for path in out.parent.iterdir()) == ["model.onnx", "model.onnx.data"]
    inputs = {"pixel_values": torch.randn(5, 3, 32, 32), "noise": torch.rand(5, 16)}
    assert_as_pytorch(out, MAEForPreTraining.from_pretrained(folder), **inputs)


def test_backbone_is_exported_as_the_encoder_that_it_is(tiny_config, out, tmp_path):
    MAEBackbone(tiny_config()).save_pretrained(tmp_path / "backbone")
    assert main([str(tmp_path / "backbone"), str(out)]) == 0
    assert_as_pytorch(out, MAEModel.from_pretrained(tmp_path / "backbone"), pixel_values=torch.randn(5, 3, 32, 32))


def test_weights_come_to_their_place_before_the_file_that_needs_them(folder, out, monkeypatch):
    monkeypatch.setattr("torch.onnx._internal.exporter._onnx_program._LARGE_MODEL_THRESHOLD", 10_000)  # bytes
    moved, rename = [], Path.rename
    monkeypatch.setattr(Path, "rename", lambda path, target: moved.append(path.name) or rename(path, target))
    assert main([str(folder), str(out)]) == 0
    assert moved == ["model.onnx.data", "model.onnx"]


def test_outputs_of_other_shapes_differ():
    assert largest_difference(torch.zeros(2, 1), torch.zeros(2)) == math.inf


def refused(capsys, out, *arguments):
    """The only line on standard error of a run that fails and writes nothing."""
    before = sorted(out.parent.iterdir()) if out.parent.exists() else None
    assert main([*map(str, arguments)]) == 1
    assert (sorted(out.parent.iterdir()) if out.parent.exists() else None) == before
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize(("place", "name", "error"), [(1, "logits", 2e-4), (1, "logits", math.nan), (2, "mask", 1e-6)])
def test_file_that_differs_is_not_kept(folder, out, capsys, monkeypatch, place, name, error):
    import onnxruntime

    class Wrong(onnxruntime.InferenceSession):
        def run(self, *arguments):
            found = super().run(*arguments)
            found[place] += error
            return found

    monkeypatch.setattr(onnxruntime, "InferenceSession", Wrong)
    line = refused(capsys, out, folder, out)
    assert line == f"export_onnx: onnxruntime differs from PyTorch in {name}: nothing is written"


def test_bad_input_is_one_line(folder, out, capsys, tiny_config, tmp_path):
    assert "nowhere" in refused(capsys, out, tmp_path / "nowhere", out)
    missing = out.parent / "no" / "model.onnx"
    assert refused(capsys, missing, folder, missing) == f"export_onnx: no such directory: {missing.parent}"
    MAEForImageClassification(tiny_config()).save_pretrained(tmp_path / "classifier")
    assert "--encoder is for pretraining" in refused(capsys, out, tmp_path / "classifier", out, "--encoder")
    for mine in (out.with_name("model.onnx.data"), out):
        mine.write_text("mine")
        assert refused(capsys, out, folder, out) == f"export_onnx: {mine} already exists"
        assert mine.read_text() == "mine"


def test_folder_of_another_model_or_with_damaged_weights(folder, out, capsys):
    weights, config = folder / "model.safetensors", folder / "config.json"
    weights.write_bytes(weights.read_bytes()[:3000])
    assert f"the weights in {folder} are damaged" in refused(capsys, out, folder, out)
    config.write_text(json.dumps({"model_type": "vit", "architectures": ["ViTModel"]}))
    assert f"{folder} holds ViTModel" in refused(capsys, out, folder, out)
    config.write_text(json.dumps({"model_type": "mae"}))
    assert f"{folder} holds no class" in refused(capsys, out, folder, out)


def test_missing_package_is_named(folder, out, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    line = refused(capsys, out, folder, out)
    assert line == "export_onnx: onnxruntime not installed: pip install onnxruntime"


def test_opset_that_the_exporter_does_not_write_is_wrong_usage(folder, out, capsys):
    with pytest.raises(SystemExit, match="2"):
        main([str(folder), str(out), "--opset", "17"])
    assert "--opset" in capsys.readouterr().err
