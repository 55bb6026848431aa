import math
import re

import pytest
import torch

from mae_hf import block_masking, grid_masking, random_masking
from mae_hf.masking import MASKS, draw_masks, masking_from_bool

TOKENS = torch.arange(8.0).reshape(1, 8, 1).expand(2, -1, 3)
NAN = float("nan")


def test_smallest_noise_is_kept_in_ascending_order():
    noise = torch.tensor([[0.3, 0.9, 0.1, 0.8, 0.7, 0.6, 0.2, 0.5]])
    kept, mask, ids_restore = random_masking(TOKENS[:1], 0.5, noise)
    assert kept[0, :, 0].tolist() == [2, 6, 0, 7]
    assert mask.tolist() == [[0, 1, 0, 1, 1, 1, 0, 0]]
    assert ids_restore[0, 2] == 0 and ids_restore.dtype == torch.int64


def test_restore_inverts_masking():
    kept, mask, ids_restore = random_masking(TOKENS, 0.5)
    padded = torch.cat([kept, torch.full_like(kept, -1)], dim=1)
    restored = padded.gather(1, ids_restore.unsqueeze(-1).expand_as(TOKENS))
    assert torch.equal(restored, torch.where(mask.bool().unsqueeze(-1), -1.0, TOKENS))


def test_each_image_gets_its_own_mask_and_the_seed_decides():
    torch.manual_seed(0)
    _, first, _ = random_masking(torch.zeros(2, 196, 1), 0.75)
    torch.manual_seed(0)
    _, again, _ = random_masking(torch.zeros(2, 196, 1), 0.75)
    assert torch.equal(first, again) and not torch.equal(first[0], first[1])
    assert first.sum(dim=1).tolist() == [147, 147]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.int64])
def test_noise_may_have_any_dtype(dtype):
    noise = torch.arange(8).flip(0).expand(2, -1).to(dtype)
    assert random_masking(TOKENS, 0.75, noise).x_masked[0, :, 0].tolist() == [7, 6]


def test_masking_can_be_differentiated():
    tokens = TOKENS.clone().requires_grad_()
    kept, mask, _ = random_masking(tokens, 0.5)
    kept.sum().backward()
    assert torch.equal(tokens.grad[..., 0], 1 - mask)


def test_given_mask_keeps_image_order():
    masked = torch.tensor([[1, 0, 1, 0, 1, 1, 0, 0], [0, 0, 0, 0, 1, 1, 1, 1]]).bool()
    kept, mask, _ = masking_from_bool(TOKENS, masked)
    assert kept[..., 0].tolist() == [[1, 3, 6, 7], [0, 1, 2, 3]]
    assert torch.equal(mask.bool(), masked)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: random_masking(TOKENS, 1.0), r"mask_ratio must be in \[0, 1\), got 1.0"),
        (lambda: random_masking(TOKENS, -0.1), r"mask_ratio must be in \[0, 1\), got -0.1"),
        (lambda: random_masking(TOKENS, NAN), r"mask_ratio must be in \[0, 1\), got nan"),
        (lambda: random_masking(TOKENS, 0.9), "0.9 leaves none of 8 patches visible"),
        (lambda: random_masking(TOKENS, 0.5, torch.rand(2, 7)), r"noise must have the shape \(2, 8\), got \(2, 7\)"),
        (lambda: random_masking(TOKENS, 0.5, torch.full((2, 8), NAN)), "noise must not contain NaN"),
        (lambda: masking_from_bool(TOKENS, torch.ones(2, 7) > 0), r"shape \(2, 8\), got \(2, 7\)"),
        (lambda: masking_from_bool(TOKENS, torch.ones(2, 8) > 0), "masks all 8 patches"),
        (lambda: masking_from_bool(TOKENS, torch.arange(16).reshape(2, 8) < 3), r"in every row, got \[3, 0\]"),
        (lambda: masking_from_bool(TOKENS, torch.full((2, 8), 0.5)), "only 0 and 1"),
        (lambda: block_masking(1, (4, 4), 1.0), "got 1.0"),
        (lambda: grid_masking(1, (4, 4), 0.5), "0.5 is not possible .* on a 4x4 grid: the nearest are 0 and 0.75"),
        (lambda: grid_masking(1, (14, 14), 0.8), "on a 14x14 grid: the nearest are 0.75 and 0.889"),
        (lambda: grid_masking(1, (4, 14), 0.97), "on a 4x14 grid: the nearest is 0.938"),
        (lambda: grid_masking(1, (4, 4), -1.0), "got -1.0"),
        (lambda: draw_masks("blok", 1, (4, 4), 0.75), "unknown masking strategy 'blok'; known: random, block, grid"),
    ],
)
def test_wrong_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("grid", [(14, 14), (4, 8), (2, 2), (1, 16)])
@pytest.mark.parametrize("ratio", [0.0, 0.5, 0.75])
def test_blocks_mask_as_many_patches_as_random_masking(grid, ratio):
    masks = block_masking(3, grid, ratio)
    length = grid[0] * grid[1]
    assert masks.sum(dim=1).tolist() == [length - int(length * (1 - ratio))] * 3


def test_blocks_are_connected_more_than_random_patches():
    generator = torch.Generator().manual_seed(0)
    blocks = block_masking(64, (14, 14), 0.5, generator)
    rows = torch.rand(64, 196, generator=generator).argsort(dim=1) < 98
    alike = [(mask.reshape(64, 14, 14).diff(dim=2) == 0).float().mean() for mask in (blocks.int(), rows.int())]
    assert alike[0] > 0.8 > 0.6 > alike[1]


def test_blocks_differ_between_images_and_follow_the_generator():
    first, again = (block_masking(2, (14, 14), 0.75, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first, again) and not torch.equal(first[0], first[1])


def test_grid_keeps_one_of_every_four():
    masks = grid_masking(2, (4, 6), 0.75)
    visible = (~masks[0]).reshape(4, 6).nonzero().tolist()
    assert visible == [[0, 0], [0, 2], [0, 4], [2, 0], [2, 2], [2, 4]]
    assert torch.equal(masks[0], masks[1]) and masks.is_contiguous()
    assert (~grid_masking(1, (6, 6), 8 / 9)).sum() == 4


@pytest.mark.parametrize("side", [1, 2, 7, 14, 31, 32, 64])
def test_grid_accepts_every_ratio_that_its_error_names(side):
    for thousandths in range(1000):
        try:
            grid_masking(1, (side, side + 3), thousandths / 1000)
        except ValueError as error:
            nearest = re.findall(r"[\d.]+", str(error).partition("nearest")[2])
            assert 1 <= len(nearest) <= 2
            for ratio in map(float, nearest):
                grid_masking(1, (side, side + 3), ratio)


@pytest.mark.parametrize("strategy", MASKS)
def test_every_strategy_gives_a_keyword_argument_of_the_models(fresh, strategy):
    (name, masks), *others = draw_masks(strategy, 2, (4, 4), 0.75, torch.Generator().manual_seed(0)).items()
    again = draw_masks(strategy, 2, (4, 4), 0.75, torch.Generator().manual_seed(0))[name]
    assert not others and masks.shape == (2, 16) and torch.equal(masks, again)
    out = fresh()(torch.zeros(2, 3, 32, 32), mask_ratio=0.75, **{name: masks})
    assert out.mask.sum(dim=1).tolist() == [12, 12]
    expected = masks if name == "bool_masked_pos" else masks.argsort(dim=1).argsort(dim=1) >= 4
    assert torch.equal(out.mask.bool(), expected)


def test_random_masks_are_plain_uniform_noise():
    """Its numbers are those of a single call of `torch.rand`: figures and runs of a seed stay the same."""
    noise = draw_masks("random", 2, (3, 5), 0.75, torch.Generator().manual_seed(3))["noise"]
    assert torch.equal(noise, torch.rand(2, 15, generator=torch.Generator().manual_seed(3)))


def test_a_new_strategy_is_one_function_and_one_line(monkeypatch):
    def left_half(batch_size, grid_size, mask_ratio, generator):
        masked = torch.arange(math.prod(grid_size)) % grid_size[1] < grid_size[1] // 2
        return masked.repeat(batch_size, 1)

    monkeypatch.setitem(MASKS, "left", left_half)
    masks = draw_masks("left", 2, (2, 4), 0.5)
    assert masks["bool_masked_pos"].tolist() == [[True, True, False, False] * 2] * 2


@pytest.mark.parametrize("length", [49, 196, 256])
def test_mask_is_the_same_as_noise_with_half_a_patch_less(length):
    """So a given mask is compiled: the exact ratio would mask one more patch now and then, by rounding."""
    for masked in range(1, length):
        mask = (torch.arange(length) < masked).float().unsqueeze(0)
        found = random_masking(torch.zeros(1, length, 1), (masked - 0.5) / length, mask)
        assert torch.equal(found.mask, mask)
