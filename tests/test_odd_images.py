"""Image files of every mode, rotated, thin or huge, in `reconstruct`, the command and the pipelines."""

import re
import struct
import zlib

import numpy
import pytest
import torch
from PIL import Image
from transformers import pipeline

from mae_hf import MAEForImageClassification, reconstruct
from mae_hf.cli import main
from mae_hf.image_processor import image_processor
from mae_hf.reconstruction import open_image
from tests.helpers import CHELSEA

TURN_RIGHT = 6  # EXIF orientation: the stored pixels must be rotated to the right
FILES = {
    "rgb.png": "RGB",
    "rgb.jpg": "RGB",
    "grey.png": "L",
    "grey.jpg": "L",
    "grey_alpha.png": "LA",
    "palette.png": "P",
    "transparent.png": "RGBA",
    "transparent.webp": "RGBA",
    "print.jpg": "CMYK",
    "print.tiff": "CMYK",
    "black_and_white.png": "1",
}


@pytest.fixture
def chelsea():
    """A photograph of 90 x 60 pixels."""
    with Image.open(CHELSEA) as image:
        return image.convert("RGB").resize((90, 60), Image.Resampling.BICUBIC)


@pytest.fixture
def folder(tiny_model, tmp_path):
    """Folder of a pretraining model and its processor."""
    model = tiny_model()
    model.save_pretrained(tmp_path / "model")
    image_processor(model.config).save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.fixture
def prepared(tiny_model, folder, tmp_path, capsys):
    """Returns the pixels of a file, after checking that all ways of preparing it agree."""
    extractor = pipeline("image-feature-extraction", model=folder)
    classifier_model = MAEForImageClassification(tiny_model().config).eval()
    processor = image_processor(classifier_model.config)
    classifier = pipeline("image-classification", model=classifier_model, image_processor=processor)

    def prepared(path):
        pixels = processor(open_image(path), return_tensors="pt")["pixel_values"]
        for pipe in (extractor, classifier):
            assert torch.equal(pipe.preprocess(str(path))["pixel_values"], pixels)
        features, scores = tiny_model().mae(pixels), classifier_model(pixels).logits[0].tolist()
        assert torch.equal(extractor(str(path), return_tensors=True), features.last_hidden_state)
        assert [label["score"] for label in classifier(str(path), function_to_apply="none")] == sorted(scores)[::-1]
        original = reconstruct(tiny_model(), path).original
        assert torch.equal(torch.from_numpy(numpy.array(original)), to_bytes(pixels[0]))
        assert of_command(path) == original
        return pixels

    def of_command(path):
        out = tmp_path / "out.png"
        assert main(["reconstruct", str(path), "--model", folder, "--output", str(out)]) == 0
        assert capsys.readouterr() == (f"{out}\n", "")
        with Image.open(out) as figure:
            return figure.crop((8, 26, 8 + 224, 26 + 224)).resize((32, 32), Image.Resampling.NEAREST)

    return prepared


def to_bytes(normalised):
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 3, 1, 1)
    return ((normalised * std + mean).clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0)


def pixels_of(image):
    """The processor's output for an upright RGB image and the tiny model."""
    width, height = image.size
    size = (36, 36 * height // width) if width <= height else (36 * width // height, 36)
    left, top = (size[0] - 32) // 2, (size[1] - 32) // 2
    cropped = image.resize(size, Image.Resampling.BICUBIC).crop((left, top, left + 32, top + 32))
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 3, 1, 1)
    return ((torch.from_numpy(numpy.array(cropped)).permute(2, 0, 1).float() / 255 - mean) / std)[None]


@pytest.mark.parametrize("name", FILES)
def test_files_of_every_mode_are_prepared_alike_by_all(chelsea, prepared, tmp_path, name):
    image = chelsea.convert(FILES[name])
    if "A" in image.getbands():
        image.putalpha(Image.linear_gradient("L").resize(image.size))
    image.save(tmp_path / name)
    with Image.open(tmp_path / name) as stored:
        assert stored.mode == image.mode
        wanted = stored.convert("RGB")  # transparency is dropped, as officially
    assert torch.equal(prepared(tmp_path / name), pixels_of(wanted))


@pytest.mark.parametrize("mode", ["P", "L", "RGB"])
def test_colour_that_stands_for_transparency_is_shown(tiny_model, chelsea, tmp_path, mode):
    """Officially it is a colour like any other. (The pipelines of transformers show it white.)"""
    image = chelsea.quantize(4).convert(mode)
    transparent = image.getpixel((45, 30))
    image.save(tmp_path / "photo.png", transparency=transparent)
    with Image.open(tmp_path / "photo.png") as stored:
        assert stored.mode == mode and stored.info["transparency"] == transparent
    assert reconstruct(tiny_model(), tmp_path / "photo.png") == reconstruct(tiny_model(), image.convert("RGB"))


def test_animation_is_its_first_frame(tiny_model, chelsea, tmp_path):
    frames = [chelsea.quantize(64), chelsea.transpose(Image.Transpose.FLIP_LEFT_RIGHT).quantize(64)]
    frames[0].save(tmp_path / "photo.gif", save_all=True, append_images=frames[1:])
    first, last = (reconstruct(tiny_model(), frame.convert("RGB")) for frame in frames)
    assert reconstruct(tiny_model(), tmp_path / "photo.gif") == first != last


def test_cmyk_of_a_jpeg_shows_the_photograph(chelsea, prepared, tmp_path):
    """Files store CMYK inverted: read wrongly, it would be the negative."""
    chelsea.convert("CMYK").save(tmp_path / "print.jpg", quality=100, subsampling=0)
    assert (prepared(tmp_path / "print.jpg") - pixels_of(chelsea)).abs().max() < 0.1


def turned(image, path, **options):
    """Save an image like a camera held upright: rotated, with its orientation in the EXIF data."""
    exif = Image.Exif()
    exif[0x0112] = TURN_RIGHT
    image.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif, **options)
    return path


def test_exif_orientation_is_applied(tiny_model, chelsea, prepared, tmp_path):
    assert torch.equal(prepared(turned(chelsea, tmp_path / "turned.png")), pixels_of(chelsea))
    photograph = turned(chelsea, tmp_path / "turned.jpg", quality=100, subsampling=0)
    found = prepared(photograph)
    assert 0 < (found - pixels_of(chelsea)).abs().max() < 0.1
    with Image.open(photograph) as on_its_side:
        assert on_its_side.size == (60, 90)
        assert (found - pixels_of(on_its_side)).abs().max() > 1
        assert reconstruct(tiny_model(), on_its_side) == reconstruct(tiny_model(), photograph)


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (2, 3)])
def test_images_of_one_pixel_across(chelsea, prepared, tmp_path, size):
    chelsea.resize(size).save(tmp_path / "thin.png")
    assert torch.equal(prepared(tmp_path / "thin.png"), pixels_of(chelsea.resize(size)))


def test_huge_photograph(chelsea, prepared, tmp_path):
    """6 megapixels here, 81 in the heavy test; above 89 Pillow warns."""
    chelsea.resize((3000, 2000), Image.Resampling.BICUBIC).save(tmp_path / "huge.jpg")
    with Image.open(tmp_path / "huge.jpg") as image:
        wanted = pixels_of(image)
    assert torch.equal(prepared(tmp_path / "huge.jpg"), wanted)
    assert (wanted - pixels_of(chelsea)).abs().max() < 0.2


@pytest.mark.heavy
def test_photograph_of_81_megapixels(chelsea, prepared, tmp_path):
    chelsea.resize((9000, 9000), Image.Resampling.BICUBIC).save(tmp_path / "huge.jpg")
    with Image.open(tmp_path / "huge.jpg") as image:
        wanted = pixels_of(image)
    assert torch.equal(prepared(tmp_path / "huge.jpg"), wanted)


def claiming(width, height, path):
    """A PNG of one pixel whose header claims others."""
    Image.new("RGB", (1, 1)).save(path)
    data, size = path.read_bytes(), struct.pack(">II", width, height)
    header = b"IHDR" + size + data[24:29]
    path.write_bytes(data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:])
    return path


def test_decompression_bomb_is_refused_in_a_line(tiny_model, folder, tmp_path, capsys):
    bomb, out = claiming(20000, 20000, tmp_path / "bomb.png"), tmp_path / "out.png"
    message = r"bomb.png cannot be read as an image: Image size \(400000000 pixels\) exceeds limit"
    with pytest.raises(ValueError, match=message):
        reconstruct(tiny_model(), bomb)
    assert main(["reconstruct", str(CHELSEA), str(bomb), "--model", folder, "--output", str(out)]) == 1
    error = capsys.readouterr().err
    assert re.match(f"mae-hf: .*{message}", error) and error.count("\n") == 1
    assert not out.exists()
    with pytest.raises(Image.DecompressionBombError, match="exceeds limit"):
        pipeline("image-feature-extraction", model=folder)(str(bomb))


@pytest.mark.parametrize("end", [20, 60, -20])
def test_truncated_photograph_is_refused_in_a_line(tiny_model, folder, chelsea, tmp_path, capsys, end):
    chelsea.save(tmp_path / "whole.jpg")
    (tmp_path / "part.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:end])
    with pytest.raises(ValueError, match=r"part.jpg cannot be read as an image"):
        reconstruct(tiny_model(), tmp_path / "part.jpg")
    out = tmp_path / "out.png"
    assert main(["reconstruct", str(tmp_path / "part.jpg"), "--model", folder, "--output", str(out)]) == 1
    error = capsys.readouterr().err
    assert "part.jpg cannot be read as an image" in error and error.count("\n") == 1


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_more_than_8_bits_a_channel_are_refused_in_a_line(tiny_model, folder, tmp_path, capsys, mode):
    """The pipelines of transformers take them, and Pillow clips them to white."""
    image = Image.new(mode, (40, 40), 30000)
    with pytest.raises(ValueError, match=f"an image of mode {mode} has more than 8 bits per channel"):
        reconstruct(tiny_model(), image)
    image.save(tmp_path / "deep.tiff")
    out = tmp_path / "out.png"
    assert main(["reconstruct", str(tmp_path / "deep.tiff"), "--model", folder, "--output", str(out)]) == 1
    error = capsys.readouterr().err
    assert "has more than 8 bits per channel: convert it to 8 bits first" in error and error.count("\n") == 1


def test_empty_images_are_refused(tiny_model):
    with pytest.raises(ValueError, match="an image of 0x5 pixels is empty"):
        reconstruct(tiny_model(), Image.new("RGB", (0, 5)))


@pytest.mark.parametrize("size", [(1, 1001), (3000, 1)])
def test_images_more_than_1000_times_as_long_as_wide_are_refused(tiny_model, folder, tmp_path, capsys, size):
    """The shorter side goes to 256 pixels: 1 x 3000 pixels would become 200 megapixels, of which 0.03 % are shown."""
    message = f"an image of {size[0]}x{size[1]} pixels is too thin: crop it first"
    with pytest.raises(ValueError, match=message):
        reconstruct(tiny_model(), Image.new("RGB", size))
    Image.new("RGB", size).save(tmp_path / "thin.png")
    command = ["reconstruct", str(tmp_path / "thin.png"), "--model", folder, "--output", str(tmp_path / "out.png")]
    assert main(command) == 1
    assert capsys.readouterr().err == f"mae-hf: {tmp_path / 'thin.png'} is not supported: {message}\n"


def test_images_1000_times_as_long_as_wide_are_prepared(prepared, tmp_path):
    Image.linear_gradient("L").resize((1000, 1)).save(tmp_path / "thin.png")
    prepared(tmp_path / "thin.png")
