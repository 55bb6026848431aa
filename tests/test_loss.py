import pytest
import torch
from torch.testing import assert_close

from mae_hf.loss import patch_statistics, reconstruction_loss


def test_statistics_are_unbiased_and_safe_on_flat_patches():
    mean, std = patch_statistics(torch.tensor([[[1.0, 3.0], [5.0, 5.0]]]))
    assert mean.flatten().tolist() == [2, 5]
    assert_close(std.flatten(), torch.tensor([(2 + 1e-6) ** 0.5, 1e-3]))


@pytest.mark.parametrize(("norm_pix_loss", "key"), [(False, "loss"), (True, "loss_norm_pix")])
def test_loss_equals_the_official_one(golden, norm_pix_loss, key):
    patches, pred, mask = golden["patchify"], golden["mask_0.75.pred"], golden["mask_0.75.mask"]
    loss = reconstruction_loss(patches, pred, mask, norm_pix_loss)
    assert_close(loss, golden[f"mask_0.75.{key}"], atol=5e-6, rtol=0)


def test_loss_is_taken_on_masked_patches_only(golden):
    patches, mask, pred = golden["patchify"], golden["mask_0.75.mask"], golden["mask_0.75.pred"]
    expected = reconstruction_loss(patches, pred, mask, norm_pix_loss=False)
    spoiled = torch.where(mask.bool().unsqueeze(-1), pred, pred + 100)
    assert torch.equal(reconstruction_loss(patches, spoiled, mask, norm_pix_loss=False), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_loss_is_computed_in_float32_or_wider(dtype):
    patches, pred = torch.full((1, 2, 4), 300.0), torch.zeros(1, 2, 4, dtype=dtype)  # 300 ** 2 overflows float16
    loss = reconstruction_loss(patches, pred, torch.ones(1, 2), norm_pix_loss=False)
    assert loss.dtype == torch.promote_types(dtype, torch.float32) and loss == 300**2


def test_loss_without_a_masked_patch_is_nan_as_officially():
    patches = torch.zeros(1, 2, 4)
    assert reconstruction_loss(patches, patches, torch.zeros(1, 2), norm_pix_loss=False).isnan()
