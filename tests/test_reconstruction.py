import numpy
import pytest
import torch
from PIL import Image

from mae_hf import MAEConfig, MAEForPreTraining, UntrainedWeightsWarning, reconstruct
from mae_hf.image_processor import image_processor
from mae_hf.loss import patch_statistics
from mae_hf.masking import MASKS
from mae_hf.patch_embed import patchify
from mae_hf.reconstruction import draw_panels, open_image


@pytest.fixture
def photograph(tmp_path):
    """A colourful image of 90 x 70 pixels, in a file."""
    rng = numpy.random.RandomState(0)
    small = Image.fromarray(rng.randint(0, 255, (7, 9, 3), dtype=numpy.uint8))
    path = tmp_path / "photo.png"
    small.resize((90, 70), Image.Resampling.BICUBIC).save(path)
    return path


def pixels(image):
    return torch.from_numpy(numpy.array(image)).float()


def to_bytes(normalised):
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 3, 1, 1)
    return ((normalised * std + mean).clamp(0, 1) * 255).round().permute(1, 2, 0)


@pytest.mark.parametrize("mask", MASKS)
def test_visible_patches_are_the_original_and_masked_ones_the_prediction(tiny_model, photograph, mask):
    original, masked, reconstruction, pasted = map(pixels, reconstruct(tiny_model(), photograph, mask=mask))
    changed = (masked != original).any(dim=-1)
    assert changed.float().mean() > 0.5
    assert torch.equal(pasted[~changed], original[~changed])
    assert torch.equal(pasted[changed], reconstruction[changed])
    blocks = changed.reshape(4, 8, 4, 8).float().mean(dim=(1, 3))  # whole patches, except by chance
    assert ((blocks < 0.01) | (blocks > 0.9)).all() and (blocks > 0.9).sum() == 12


def test_reconstruction_shows_the_model_output(tiny_model, photograph):
    model = tiny_model()
    noise = torch.rand(1, 16, generator=torch.Generator().manual_seed(3))
    inputs = image_processor(model.config)(open_image(photograph), return_tensors="pt")
    expected = model.unpatchify(model(**inputs, noise=noise).logits)[0]
    assert torch.equal(pixels(reconstruct(model, photograph, seed=3).reconstruction), to_bytes(expected))


def test_model_of_normalised_pixels_is_shown_with_the_statistics_of_the_original(tiny_model, photograph):
    model = tiny_model(norm_pix_loss=True)
    torch.nn.init.zeros_(model.decoder.pred.weight)
    torch.nn.init.constant_(model.decoder.pred.bias, 0.5)  # half a standard deviation above the mean of the patch
    shown = pixels(reconstruct(model, photograph).reconstruction)
    inputs = image_processor(model.config)(open_image(photograph), return_tensors="pt")["pixel_values"]
    mean, std = patch_statistics(patchify(inputs, 8))
    expected = model.unpatchify((mean + 0.5 * std).expand(-1, -1, 192))[0]
    assert torch.equal(shown, to_bytes(expected))


def test_seed_determines_the_mask(tiny_model, photograph):
    first, again, other = (reconstruct(tiny_model(), photograph, seed=seed).masked for seed in (1, 1, 2))
    assert first == again and first != other


def test_model_keeps_its_mode(tiny_model, photograph):
    model = tiny_model(hidden_dropout_prob=0.5).train()
    assert reconstruct(model, photograph) == reconstruct(model, photograph)
    assert model.training
    with pytest.raises(ValueError, match="mask_ratio"):
        reconstruct(model, photograph, mask_ratio=1.5)
    assert model.training


def test_untrained_decoder_of_an_encoder_folder_is_refused(tiny_model, photograph, tmp_path):
    tiny_model().mae.save_pretrained(tmp_path)
    with pytest.warns(UntrainedWeightsWarning, match="encoder-only weights"):
        model = MAEForPreTraining.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="decoder of this model is untrained: .* loaded from encoder-only weights"):
        reconstruct(model, photograph)
    optimizer = torch.optim.AdamW(model.decoder.parameters())
    model(torch.randn(1, 3, 32, 32)).loss.backward()
    optimizer.step()
    assert reconstruct(model, photograph).pasted.size == (32, 32)


def test_images_that_are_not_square_are_shown_whole(photograph):
    config = MAEConfig(image_size=(32, 64), patch_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    images = reconstruct(MAEForPreTraining(config), photograph)
    assert {image.size for image in images} == {(64, 32)}


@pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK", "P", "1"])
def test_images_of_other_modes_are_converted(tiny_model, photograph, mode):
    assert reconstruct(tiny_model(), open_image(photograph).convert(mode)).original.mode == "RGB"


def test_wrong_input_is_refused(tiny_model, photograph, tmp_path):
    with pytest.raises(ValueError, match="must be a MAEForPreTraining, which has a decoder, got MAEModel"):
        reconstruct(tiny_model().mae, photograph)
    with pytest.raises(ValueError, match="unknown masking strategy 'blok'; known: random, block, grid"):
        reconstruct(tiny_model(), photograph, mask="blok")
    with pytest.raises(ValueError, match=r"mask_ratio must be in \[0, 1\), got 1.5"):
        reconstruct(tiny_model(), photograph, mask_ratio=1.5)
    with pytest.raises(ValueError, match="0.5 is not possible with grid masking on a 4x4 grid"):
        reconstruct(tiny_model(), photograph, mask="grid", mask_ratio=0.5)
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(ValueError, match=r"text.png cannot be read as an image"):
        reconstruct(tiny_model(), tmp_path / "text.png")
    with pytest.raises(ValueError, match="mode I;16 has more than 8 bits per channel"):
        reconstruct(tiny_model(), Image.new("I;16", (40, 40)))
    with pytest.raises(ValueError, match="image must be a PIL image or a file name, got Tensor"):
        reconstruct(tiny_model(), torch.zeros(3, 32, 32))
    config = MAEConfig(num_channels=4, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    with pytest.raises(ValueError, match="the model must have 3 channels, got 4"):
        reconstruct(MAEForPreTraining(config), photograph)


def test_panels_are_enlarged_and_labelled(tiny_model, photograph):
    row = reconstruct(tiny_model(), photograph)
    plain = draw_panels([row, row], ["", "", "", ""])
    labelled = draw_panels([row, row], ["original", "b", "c", "d"], note="a note")
    assert plain.width == 8 + 4 * (224 + 8) and labelled.height > plain.height > 2 * 224
    assert plain.crop((0, 0, plain.width, 20)).getextrema() == ((255, 255),) * 3
    assert labelled.crop((0, 0, 232, 20)).getextrema() != ((255, 255),) * 3
    panel = labelled.crop((8, 26, 8 + 224, 26 + 224)).resize((32, 32), Image.Resampling.NEAREST)
    assert panel == row.original
