"""The command lines: what they write, what they print, and what they refuse."""

import pytest
import torch
from PIL import Image

from mae_hf import MAEConfig
from mae_hf.cli import main
from mae_hf.reconstruction import open_image
from tests.helpers import HEAD_OPTIONS, run_program, run_python

WITHOUT_DECODER = ["encoder", "finetuned", "finetuned_cls", "linprobe"]


@pytest.fixture
def tiny(reference):
    return reference / "tiny"


@pytest.fixture
def folder(tiny, tmp_path, capsys):
    assert main(["convert", str(tiny / "full.pth"), str(tmp_path / "full"), *HEAD_OPTIONS]) == 0
    capsys.readouterr()
    return tmp_path / "full"


@pytest.fixture
def photograph(tmp_path):
    Image.radial_gradient("L").convert("RGB").save(tmp_path / "photo.jpg")
    return str(tmp_path / "photo.jpg")


@pytest.mark.parametrize("name", ["full", "training_checkpoint", "full_legacy", "full_fp16", *WITHOUT_DECODER])
def test_convert_then_verify(tiny, tmp_path, capsys, name):
    heads = HEAD_OPTIONS[:2] if name in WITHOUT_DECODER else HEAD_OPTIONS
    assert main(["convert", str(tiny / f"{name}.pth"), str(tmp_path / "out"), *heads]) == 0
    assert "read back and compared bit for bit" in capsys.readouterr().out
    assert main(["verify", str(tiny / f"{name}.pth"), str(tmp_path / "out")]) == 0
    assert "nothing missing, nothing extra" in capsys.readouterr().out


def test_options_of_convert(tiny, tmp_path, capsys):
    source, out = str(tiny / "full.pth"), str(tmp_path / "out")
    options = ["--dtype", "float16", "--max-shard-size", "100KB", "--license", "mit", "--image-size", "16", "64"]
    assert main(["convert", source, out, *HEAD_OPTIONS, *options]) == 0
    assert "cast to float16" in capsys.readouterr().out
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 1
    assert "license: mit" in (tmp_path / "out" / "README.md").read_text()
    config = MAEConfig.from_pretrained(out)
    assert config.image_size == (16, 64) and config.dtype == torch.float16
    assert main(["convert", source, out, *HEAD_OPTIONS]) == 1
    assert "already exists" in capsys.readouterr().err
    assert main(["convert", source, out, *HEAD_OPTIONS, "--overwrite", "--norm-pix-loss"]) == 0
    assert MAEConfig.from_pretrained(out).norm_pix_loss
    assert main(["verify", source, out]) == 0


def test_model_that_cannot_be_loaded_gives_one_line(folder, photograph, tmp_path, capsys):
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    arguments = ["reconstruct", photograph, "--model", str(folder), "--output", str(tmp_path / "out.png")]
    weights.write_bytes(content[:-10])
    assert main(arguments) == 1
    assert f"the model '{folder}' cannot be loaded" in capsys.readouterr().err
    weights.write_bytes(content)
    processor = (folder / "preprocessor_config.json").read_text()
    (folder / "preprocessor_config.json").write_text(processor[:-10])
    assert main(arguments) == 1
    assert "preprocessor_config.json" in capsys.readouterr().err
    (folder / "preprocessor_config.json").unlink()  # without one, the transform for the model's size is taken
    assert main(arguments) == 0
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace('"intermediate_size": 256', '"intermediate_size": 128'))
    assert main(arguments) == 1
    assert "size mismatch between checkpoint and model" in capsys.readouterr().err
    (folder / "config.json").write_text(config.replace('"num_hidden_layers": 2', '"num_hidden_layers": 3', 1))
    assert main(arguments) == 1
    assert "does not fit its config" in capsys.readouterr().err
    (folder / "config.json").write_text("[]")
    assert main(arguments) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_verify_fails_when_something_differs(tiny, folder, capsys):
    assert main(["verify", str(tiny / "training_checkpoint.pth"), str(folder)]) == 1
    assert "differs: mae.cls_token has other values (and " in capsys.readouterr().err


def test_inspect_prints_what_a_file_is(tiny, capsys):
    assert main(["inspect", str(tiny / "encoder.pth")]) == 0
    assert "encoder only, no decoder" in capsys.readouterr().out


def test_several_images_share_one_labelled_figure(folder, photograph, tmp_path, capsys):
    for count in (1, 3):
        output = str(tmp_path / f"{count}.png")
        assert main(["reconstruct", *[photograph] * count, "--model", str(folder), "--output", output]) == 0
        assert capsys.readouterr().out == f"{output}\n"
    heights = [open_image(tmp_path / f"{count}.png").height for count in (1, 3)]
    assert heights[1] - heights[0] == 2 * (224 + 8)


def test_figure_of_normalised_pixels_says_so(tiny, photograph, tmp_path):
    figures = {}
    for option in ("--no-norm-pix-loss", "--norm-pix-loss"):
        folder, output = str(tmp_path / option), str(tmp_path / f"{option}.png")
        assert main(["convert", str(tiny / "full.pth"), folder, *HEAD_OPTIONS, option]) == 0
        assert main(["reconstruct", photograph, "--model", folder, "--output", output]) == 0
        figures[option] = open_image(output)
    plain, noted = figures.values()
    assert noted.height > plain.height
    assert noted.crop((0, noted.height - 20, noted.width, noted.height)).getextrema() != ((255, 255),) * 3


def test_encoder_cannot_reconstruct(tiny, photograph, tmp_path, capsys):
    assert main(["convert", str(tiny / "encoder.pth"), str(tmp_path / "enc"), *HEAD_OPTIONS[:2]]) == 0
    output = tmp_path / "out.png"
    assert main(["reconstruct", photograph, "--model", str(tmp_path / "enc"), "--output", str(output)]) == 1
    error = capsys.readouterr().err
    assert "encoder-only weights" in error and "mae_visualize_vit" in error and error.count("\n") == 1
    assert not output.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": "nowhere.jpg"}, "nowhere.jpg"),
        ({"model": "nowhere"}, "nowhere"),
        ({"--mask-ratio": "1"}, r"mask_ratio must be in [0, 1), got 1.0"),
        ({"--output": "no_folder/out.png"}, "no_folder/out.png"),
        ({"--output": "out.xyz"}, "xyz"),
    ],
)
def test_wrong_input_gives_one_line_and_status_1(folder, photograph, capsys, monkeypatch, tmp_path, change, message):
    monkeypatch.chdir(tmp_path)
    options = {"--mask-ratio": "0.75", "--output": "out.png", **{k: v for k, v in change.items() if k[0] == "-"}}
    model = change.get("model", str(folder))
    arguments = ["reconstruct", change.get("image", photograph), "--model", model]
    assert main([*arguments, *(part for pair in options.items() for part in pair)]) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--private"], "pass --push-to-hub"),
        (["--push-to-hub", "a/b", "--to", "official"], "writes a file"),
        (["--max-shard-size", "5 gigs"], "expected a number with KB, MB, GB or TB, such as 5GB, got '5 gigs'"),
    ],
)
def test_options_that_make_no_sense_are_wrong_usage(tiny, tmp_path, capsys, options, message):
    with pytest.raises(SystemExit) as caught:
        main(["convert", str(tiny / "full.pth"), str(tmp_path / "out"), *HEAD_OPTIONS, *options])
    assert caught.value.code == 2 and message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_what_is_left_out_of_a_training_checkpoint_is_said(tiny, tmp_path, capsys):
    assert main(["convert", str(tiny / "training_checkpoint.pth"), str(tmp_path / "out"), *HEAD_OPTIONS]) == 0
    assert "left out, as they are not weights: optimizer, epoch, scaler, args" in capsys.readouterr().out


def test_every_layout_from_the_command_line(tiny, tmp_path, capsys):
    source, heads = str(tiny / "encoder.pth"), HEAD_OPTIONS[:2]
    for layout, how in (("official", "torch.load("), ("vit_mae", "ViTMAEModel"), ("timm", "timm.create_model(")):
        there, back = str(tmp_path / layout), str(tmp_path / f"from_{layout}")
        assert main(["convert", source, there, *heads, "--to", layout]) == 0
        assert how in capsys.readouterr().out
        assert main(["convert", there, back, *(heads if layout == "official" else [])]) == 0
        assert main(["verify", source, back]) == 0


def test_warnings_are_lines_of_their_own(tiny, tmp_path, capsys):
    assert main(["convert", str(tiny / "full.pth"), str(tmp_path / "out"), *HEAD_OPTIONS, "--to", "timm"]) == 0
    assert capsys.readouterr().err == "mae-hf: warning: the timm layout does not hold the decoder, which is left out\n"


@pytest.mark.parametrize("arguments", [[], ["convert"], ["reconstruct", "a.jpg"], ["convert", "a", "b", "--what"]])
def test_wrong_usage_gives_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2 and "usage: mae-hf" in capsys.readouterr().err


def test_conversion_runs_from_a_checkout_too(tiny, tmp_path):
    run_python("-m", "conversion", "convert", tiny / "full.pth", tmp_path / "out", *HEAD_OPTIONS)
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_conversion_runs_from_a_checkout_that_is_not_installed(tiny, tmp_path):
    done = run_program("uninstalled_conversion", "convert", tiny / "full.pth", tmp_path / "out", *HEAD_OPTIONS)
    assert "62 tensors, read back and compared bit for bit" in done.stdout
