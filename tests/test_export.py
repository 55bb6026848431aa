"""The models as programs of torch.export, for any number of images."""

import pytest
import torch

from mae_hf import MAEForImageClassification, MAEModel, block_masking


@pytest.fixture
def exported():
    """Exports a model with two images; the batch size stays dynamic."""

    def export(model, **inputs):
        batch = torch.export.Dim("batch")
        shapes = {name: {0: batch} if isinstance(value, torch.Tensor) else None for name, value in inputs.items()}
        return torch.export.export(model, args=(), kwargs=inputs, dynamic_shapes=shapes)

    return export


def images(batch, side=32):
    return torch.randn(batch, 3, side, side)


def noise(batch):
    return torch.rand(batch, 16)


def assert_same(found, expected):
    """The same class of output with the same fields in it, equal to rounding."""
    assert type(found) is type(expected) and list(found) == list(expected)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_encoder_takes_any_number_of_images(exported, tiny_config, attention):
    model = MAEModel(tiny_config(attn_implementation=attention)).eval()
    program = exported(model, pixel_values=images(2)).module()
    for batch in (1, 5):
        x = images(batch)
        assert_same(program(pixel_values=x), model(x))


def test_encoder_masks_by_noise(exported, tiny_config):
    model = MAEModel(tiny_config()).eval()
    program = exported(model, pixel_values=images(2), noise=noise(2)).module()
    x, keys = images(5), noise(5)
    found = program(pixel_values=x, noise=keys)
    assert_same(found, model(x, keys))
    assert found.last_hidden_state.shape == (5, 1 + 4, 64)  # the class token and a quarter of 16 patches


@pytest.mark.parametrize(("attention", "norm_pix_loss"), [("sdpa", False), ("eager", True)])
def test_pretraining_with_the_noise_of_the_caller(exported, tiny_model, attention, norm_pix_loss):
    model = tiny_model(attn_implementation=attention, norm_pix_loss=norm_pix_loss)
    program = exported(model, pixel_values=images(2), noise=noise(2)).module()
    x, keys = images(5), noise(5)
    assert_same(program(pixel_values=x, noise=keys), model(x, keys))


def test_pretraining_without_noise_draws_a_mask_at_each_call(exported, tiny_model):
    model = tiny_model()
    program = exported(model, pixel_values=images(2)).module()
    x = images(5)
    torch.manual_seed(3)
    first, second = program(pixel_values=x), program(pixel_values=x)
    torch.manual_seed(3)
    assert_same(first, model(x))
    assert_same(second, model(x))
    assert not torch.equal(first.mask, second.mask)


def test_mask_ratio_is_fixed_as_it_is_exported(exported, tiny_model):
    model = tiny_model()
    program = exported(model, pixel_values=images(2), noise=noise(2), mask_ratio=0.5).module()
    x, keys = images(3), noise(3)
    found = program(pixel_values=x, noise=keys, mask_ratio=0.5)
    assert_same(found, model(x, keys, mask_ratio=0.5))
    assert found.mask.sum(dim=1).tolist() == [8, 8, 8]


def test_a_custom_mask_is_noise_of_0_and_1(exported, tiny_model):
    model = tiny_model()
    program = exported(model, pixel_values=images(2), noise=noise(2)).module()
    x, masked = images(3), block_masking(3, model.config.grid_size)
    assert_same(program(pixel_values=x, noise=masked.float()), model(x, bool_masked_pos=masked))


def test_images_of_another_size_in_a_program_for_that_size(exported, tiny_model):
    model = tiny_model()
    program = exported(model, pixel_values=images(2, 48), noise=torch.rand(2, 36), interpolate_pos_encoding=True)
    x, keys = images(3, 48), torch.rand(3, 36)
    found = program.module()(pixel_values=x, noise=keys, interpolate_pos_encoding=True)
    assert_same(found, model(x, keys, interpolate_pos_encoding=True))


@pytest.mark.parametrize("changes", [{}, {"pooling": "cls"}, {"pooling": "cls", "linear_probe": True}], ids=str)
def test_classifier_takes_any_number_of_images(exported, tiny_config, changes):
    model = MAEForImageClassification(tiny_config(num_labels=7, **changes)).eval()
    for weights in model.head.parameters():
        torch.nn.init.normal_(weights)  # a new head's weights are so small that all outputs would look alike
    program = exported(model, pixel_values=images(2)).module()
    x = images(5)
    assert_same(program(pixel_values=x), model(x))


def test_saved_program_gives_the_same_again(exported, tiny_model, tmp_path):
    model = tiny_model()
    torch.export.save(exported(model, pixel_values=images(2), noise=noise(2)), tmp_path / "mae.pt2")
    program = torch.export.load(tmp_path / "mae.pt2").module()  # needs mae_hf imported: the output is of its class
    x, keys = images(5), noise(5)
    assert_same(program(pixel_values=x, noise=keys), model(x, keys))
