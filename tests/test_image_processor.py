"""The image processor beside a model: the official evaluation transform, to the bit, saved and loaded again."""

import numpy
import pytest
import torch
import transformers
from packaging.version import Version
from PIL import Image, ImageOps
from transformers import BitImageProcessorPil
from transformers.models.auto.image_processing_auto import AutoImageProcessor  # needs no torchvision itself
from transformers.utils import is_torchvision_available

from mae_hf import MAEConfig
from mae_hf.cli import main
from mae_hf.image_processor import image_processor, shorter_side
from tests.helpers import CHELSEA, HEAD_OPTIONS


@pytest.fixture
def chelsea():
    """A photograph of 451 x 300 pixels."""
    with Image.open(CHELSEA) as image:
        return image.convert("RGB")


@pytest.fixture
def load(tmp_path):
    """Saves the processor for an image size and loads it like a user."""

    def load(image_size=224, loader=AutoImageProcessor):
        image_processor(MAEConfig(image_size=image_size)).save_pretrained(tmp_path)
        return loader.from_pretrained(tmp_path)

    return load


def prepare(processor, image):
    return processor(image, return_tensors="pt")["pixel_values"][0]


def by_hand(image, crop=224, start=lambda margin: margin // 2):
    """Resize, CenterCrop(crop), ToTensor, Normalize, officially; `start` specifies how an odd margin is halved."""
    short = int(crop * 256 / 224) if crop <= 224 else crop
    width, height = image.size
    size = (short, int(short * height / width)) if width <= height else (int(short * width / height), short)
    left, top = (start(side - crop) for side in size)
    cropped = image.resize(size, Image.Resampling.BICUBIC).crop((left, top, left + crop, top + crop))
    pixels = torch.from_numpy(numpy.array(cropped)).permute(2, 0, 1).float() / 255
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 3, 1, 1)
    return (pixels - mean) / std


def officially(margin):
    """How `CenterCrop` of torchvision halves the margin: to the nearest number, and half-way to the even one."""
    return round(margin / 2)


@pytest.mark.parametrize("loader", [AutoImageProcessor, BitImageProcessorPil])
def test_saved_processor_is_the_official_transform_to_the_bit(chelsea, load, loader):
    found = prepare(load(loader=loader), chelsea)
    assert found.shape == (3, 224, 224) and found.dtype == torch.float32
    assert torch.equal(found, by_hand(chelsea, start=officially))


@pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.18"), reason="its top-level name needs torchvision before 5.18"
)
def test_auto_image_processor_needs_no_torchvision(tmp_path):
    image_processor(MAEConfig()).save_pretrained(tmp_path)
    found = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    assert isinstance(found, BitImageProcessorPil) and not is_torchvision_available()


@pytest.mark.parametrize("size", [(301, 457), (333, 222), (225, 223), (97, 100), (1000, 31), (19, 640), (2000, 1501)])
def test_photographs_of_any_size_to_the_bit(chelsea, load, size):
    image = chelsea.resize(size, Image.Resampling.LANCZOS)
    assert torch.equal(prepare(load(), image), by_hand(image))


@pytest.mark.parametrize(("size", "shorter"), [(32, 36), (224, 256), (240, 240), (448, 448), ((32, 64), 73)])
def test_shorter_side_is_the_official_one(size, shorter):
    """`build_transform` in util/datasets.py resizes to 256 / 224 of the crop, and to the crop itself above 224."""
    assert shorter_side(size) == shorter
    assert image_processor(MAEConfig(image_size=size, patch_size=8)).size["shortest_edge"] == shorter


@pytest.mark.parametrize("image_size", [32, 48, 80, 192, 240, 448])
def test_models_of_other_sizes_to_the_bit(chelsea, load, image_size):
    assert torch.equal(prepare(load(image_size), chelsea), by_hand(chelsea, image_size))


def test_every_value_that_a_pixel_can_have_to_the_bit(load):
    """It multiplies by 1 / 255 in float64, and torch divides by 255 in float32: every value comes out the same."""
    image = Image.fromarray(numpy.random.RandomState(0).randint(0, 256, (256, 256, 3), dtype=numpy.uint8))
    found = prepare(load(), image)
    assert [len(channel.unique()) for channel in found] == [256, 256, 256]
    assert torch.equal(found, by_hand(image))


@pytest.mark.heavy
def test_photographs_of_scikit_to_the_bit(load):
    from skimage import data
    from sklearn import datasets

    photographs = [data.astronaut(), data.coffee(), data.rocket()]
    photographs += [datasets.load_sample_image(name) for name in ("china.jpg", "flower.jpg")]
    for image in map(Image.fromarray, photographs):
        for image_size in (32, 224, 448):
            for turned in (image, image.transpose(Image.Transpose.ROTATE_90)):
                assert torch.equal(prepare(load(image_size), turned), by_hand(turned, image_size))


@pytest.mark.parametrize("upright", [False, True])
@pytest.mark.parametrize("margin", range(32, 41))
def test_crop_is_one_pixel_beside_the_official_one_where_a_margin_leaves_3_by_4(chelsea, load, margin, upright):
    """transformers rounds half an odd margin down, torchvision to the even number; they differ for 3, 7, 11, ..."""
    image = chelsea.resize((224 + margin, 256))  # already resized, so that only the crop remains
    image = image.transpose(Image.Transpose.TRANSPOSE) if upright else image
    found, official = prepare(load(), image), by_hand(image, start=officially)
    shift = int(margin % 4 == 3)
    assert officially(margin) - margin // 2 == shift
    assert torch.equal(found, official) == (shift == 0)
    axis, kept = 1 if upright else 2, 224 - shift
    assert torch.equal(found.narrow(axis, shift, kept), official.narrow(axis, 0, kept))


def test_processor_that_convert_writes_is_this_one(reference, load, tmp_path):
    assert main(["convert", str(reference / "tiny" / "full.pth"), str(tmp_path / "converted"), *HEAD_OPTIONS]) == 0
    written = (tmp_path / "converted" / "preprocessor_config.json").read_text()
    load(32)
    assert written == (tmp_path / "preprocessor_config.json").read_text()


@pytest.mark.parametrize("mode", ["L", "LA", "P", "PA", "RGBA", "CMYK", "YCbCr", "1"])
def test_other_modes_are_converted_by_pillow(chelsea, load, mode):
    image, processor = chelsea.convert(mode), load(32)
    assert image.mode == mode
    assert torch.equal(prepare(processor, image), prepare(processor, image.convert("RGB")))
    assert torch.equal(prepare(processor, image), by_hand(image.convert("RGB"), 32))


def test_transparent_images_depend_on_transformers_unless_converted_first(chelsea, load):
    """Officially transparency is dropped; the processor does so up to transformers 5.20, later it shows it white."""
    image, processor = chelsea.convert("RGBA"), load(32)
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    on_white = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    dropped, white = by_hand(chelsea, 32), by_hand(on_white, 32)
    found = prepare(processor, image)
    assert not torch.equal(dropped, white)
    assert torch.equal(found, dropped) or torch.equal(found, white)
    assert torch.equal(prepare(processor, image.convert("RGB")), dropped)


def test_exif_orientation_is_not_applied(chelsea, load):
    """`open_image`, and so `reconstruct`, and the pipelines of transformers apply it before."""
    plain = prepare(load(32), chelsea)
    chelsea.getexif()[0x0112] = 6
    assert ImageOps.exif_transpose(chelsea).size == (300, 451)
    assert torch.equal(prepare(load(32), chelsea), plain)


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (3, 2), (2, 3), (3, 3)])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_images_of_few_pixels(chelsea, load, size, mode):
    image = chelsea.resize(size).convert(mode)
    assert torch.equal(prepare(load(), image), by_hand(image.convert("RGB")))


def test_images_that_are_not_square_are_covered(chelsea, load):
    """The longer side of the model's size determines the shorter side of the resized image."""
    processor = load((32, 64))
    for size in ((200, 50), (50, 200), (64, 64)):
        image = chelsea.resize(size)
        assert torch.equal(prepare(processor, image), by_hand(image, 64)[:, 16:48])


def test_batch_equals_its_images(chelsea, load):
    images, processor = [chelsea, chelsea.resize((64, 90)), chelsea.convert("L")], load(32)
    found = processor(images, return_tensors="pt")["pixel_values"]
    assert torch.equal(found, torch.stack([prepare(processor, image) for image in images]))
