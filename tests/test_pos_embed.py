import hashlib
import json

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.golden_weights import golden_tensor
from mae_hf import get_1d_sincos_pos_embed, get_2d_sincos_pos_embed, interpolate_pos_embed

EMBEDDINGS = [(768, 14), (1024, 14), (1280, 16), (512, 14), (512, 16)]


@pytest.fixture(scope="module")
def stored(reference):
    return load_file(reference / "pos_embed" / "pos_embed.safetensors")


@pytest.mark.parametrize(("dim", "grid"), EMBEDDINGS)
def test_sincos_embedding_equals_the_official_one(reference, stored, dim, grid):
    pos_embed = get_2d_sincos_pos_embed(dim, grid, cls_token=True)
    torch.testing.assert_close(pos_embed[::5, ::3], stored[f"sincos.{dim}_{grid}"], atol=2e-6, rtol=0)
    entry = json.loads((reference / "pos_embed" / "pos_embed.json").read_text())[f"sincos.{dim}_{grid}"]
    assert hashlib.sha256(pos_embed.numpy().tobytes()).hexdigest() == entry["sha256_of_full_float32_bytes"]


def test_first_half_of_the_width_encodes_the_column_of_the_patch():
    pos_embed = get_2d_sincos_pos_embed(8, (2, 3)).reshape(2, 3, 8)
    assert torch.equal(pos_embed[0, :, :4], pos_embed[1, :, :4])
    assert torch.equal(pos_embed[:, 0, 4:], pos_embed[:, 2, 4:])
    assert not torch.equal(pos_embed[0, :, 4:], pos_embed[1, :, 4:])


def test_one_dimension_has_sines_then_cosines():
    pos_embed = get_1d_sincos_pos_embed(4, torch.tensor([0, 1]))
    assert pos_embed.dtype == torch.float64
    torch.testing.assert_close(pos_embed[0], torch.tensor([0, 0, 1, 1], dtype=torch.float64))


@pytest.mark.parametrize("grid", [6, 3])
def test_interpolation_equals_the_official_one(stored, grid):
    resized = interpolate_pos_embed(stored["tiny.input"], (4, 4), (grid, grid))
    torch.testing.assert_close(resized, stored[f"tiny.to_{grid}"], atol=1e-5, rtol=0)


def test_interpolation_of_a_large_grid_equals_the_official_one(stored):
    resized = interpolate_pos_embed(golden_tensor("pos_embed", [1, 197, 768]), (14, 14), (24, 24))
    torch.testing.assert_close(resized[:, ::7, ::5], stored["base.to_24"], atol=1e-5, rtol=0)


def test_interpolation_keeps_rows_and_columns_apart():
    rows = torch.arange(4.0).repeat_interleave(2).reshape(1, 8, 1)  # 4 x 2 patches, each row constant
    pos_embed = torch.cat([torch.full((1, 1, 1), -7.0), rows], dim=1)
    resized = interpolate_pos_embed(pos_embed, (4, 2), (4, 6))
    assert resized[0, 0] == -7
    grid = resized[0, 1:, 0].reshape(4, 6)
    torch.testing.assert_close(grid, torch.arange(4.0).repeat_interleave(6).reshape(4, 6))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: get_1d_sincos_pos_embed(3, torch.arange(2)), "embed_dim must be even, got 3"),
        (lambda: get_2d_sincos_pos_embed(6, 2), "divisible by 4, got 6"),
        (lambda: interpolate_pos_embed(torch.zeros(1, 17, 4), (4, 5), (2, 2)), r"\(1, 21, D\), got \(1, 17, 4\)"),
    ],
)
def test_wrong_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
