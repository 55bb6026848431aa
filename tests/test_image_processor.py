import numpy
import torch
from PIL import Image

from mae_hf import MAEConfig
from mae_hf.image_processor import image_processor


def test_processor_is_the_official_transform():
    """Resize(256), CenterCrop(224), ToTensor, Normalize, done with Pillow and torch by hand."""
    rng = numpy.random.RandomState(0)
    image = Image.fromarray(rng.randint(0, 255, (70, 90, 3), dtype=numpy.uint8))
    found = image_processor(MAEConfig())(image, return_tensors="pt")["pixel_values"][0]
    scaled = image.resize((int(256 * 90 / 70), 256), Image.Resampling.BICUBIC)
    left, top = round((scaled.width - 224) / 2), round((256 - 224) / 2)
    crop = torch.from_numpy(numpy.array(scaled.crop((left, top, left + 224, top + 224)))).permute(2, 0, 1) / 255
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 3, 1, 1)
    torch.testing.assert_close(found, (crop - mean) / std, atol=1e-6, rtol=0)


def test_images_that_are_not_square_are_covered():
    processor = image_processor(MAEConfig(image_size=(32, 64)))
    for size in ((200, 50), (50, 200), (64, 64)):
        assert processor(Image.new("RGB", size), return_tensors="pt")["pixel_values"].shape == (1, 3, 32, 64)
