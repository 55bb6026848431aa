import hashlib
import json

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.recipe import recipe_tensor
from mae_hf import get_1d_sincos_pos_embed, get_2d_sincos_pos_embed, interpolate_pos_embed

TABLES = [(768, 14), (1024, 14), (1280, 16), (512, 14), (512, 16)]


@pytest.fixture(scope="module")
def tables(reference):
    return load_file(reference / "pos_embed" / "pos_embed.safetensors")


@pytest.mark.parametrize(("dim", "grid"), TABLES)
def test_table_equals_the_official_one(reference, tables, dim, grid):
    table = get_2d_sincos_pos_embed(dim, grid, cls_token=True)
    torch.testing.assert_close(table[::5, ::3], tables[f"sincos.{dim}_{grid}"], atol=2e-6, rtol=0)
    entry = json.loads((reference / "pos_embed" / "pos_embed.json").read_text())[f"sincos.{dim}_{grid}"]
    assert hashlib.sha256(table.numpy().tobytes()).hexdigest() == entry["sha256_of_full_float32_bytes"]


def test_first_half_of_the_columns_encodes_the_column_of_the_patch():
    table = get_2d_sincos_pos_embed(8, (2, 3)).reshape(2, 3, 8)
    assert torch.equal(table[0, :, :4], table[1, :, :4])
    assert torch.equal(table[:, 0, 4:], table[:, 2, 4:])
    assert not torch.equal(table[0, :, 4:], table[1, :, 4:])


def test_one_dimension_has_sines_then_cosines():
    table = get_1d_sincos_pos_embed(4, torch.tensor([0, 1]))
    assert table.dtype == torch.float64
    torch.testing.assert_close(table[0], torch.tensor([0, 0, 1, 1], dtype=torch.float64))


@pytest.mark.parametrize("grid", [6, 3])
def test_resizing_equals_the_official_one(tables, grid):
    resized = interpolate_pos_embed(tables["tiny.input"], (4, 4), (grid, grid))
    torch.testing.assert_close(resized, tables[f"tiny.to_{grid}"], atol=1e-5, rtol=0)


def test_resizing_of_a_large_table_equals_the_official_one(tables):
    resized = interpolate_pos_embed(recipe_tensor("pos_embed", [1, 197, 768]), (14, 14), (24, 24))
    torch.testing.assert_close(resized[:, ::7, ::5], tables["base.to_24"], atol=1e-5, rtol=0)


def test_resizing_keeps_rows_and_columns_apart():
    rows = torch.arange(4.0).repeat_interleave(2).reshape(1, 8, 1)  # 4 x 2 patches, each row constant
    table = torch.cat([torch.full((1, 1, 1), -7.0), rows], dim=1)
    resized = interpolate_pos_embed(table, (4, 2), (4, 6))
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
