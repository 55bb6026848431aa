import pytest
import torch

from mae_hf import PatchEmbed, patchify, unpatchify


def test_pixels_of_a_patch_are_ordered_row_column_channel():
    image = torch.arange(2 * 4 * 4).reshape(1, 2, 4, 4)
    first = patchify(image, 2)[0, 0]
    assert first.tolist() == [0, 16, 1, 17, 4, 20, 5, 21]


@pytest.mark.parametrize("shape", [(2, 3, 32, 32), (1, 1, 32, 64), (2, 13, 48, 80)])
def test_unpatchify_inverts_patchify(shape):
    images = torch.randn(shape)
    assert torch.equal(unpatchify(patchify(images, 16), 16, shape[2:]), images)


def test_patchify_and_unpatchify_equal_the_official_ones(golden):
    assert torch.equal(patchify(golden["pixel_values"], 8), golden["patchify"])
    assert torch.equal(unpatchify(golden["mask_0.75.pred"], 8), golden["unpatchify"])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: patchify(torch.zeros(1, 3, 30, 32), 8), "30x32 is not divisible by the patch size 8"),
        (lambda: patchify(torch.zeros(3, 32, 32), 8), r"\(B, C, H, W\), got \(3, 32, 32\)"),
        (lambda: unpatchify(torch.zeros(1, 16, 191), 8), r"P = 8, got \(1, 16, 191\)"),
        (lambda: unpatchify(torch.zeros(16, 192), 8), r"\(B, L, P \* P \* C\)"),
        (lambda: unpatchify(torch.zeros(1, 15, 192), 8), "15 patches do not form a square"),
        (lambda: unpatchify(torch.zeros(1, 16, 192), 8, (32, 64)), "an image of 4x8 patches needs 32 patches, got 16"),
        (lambda: PatchEmbed(30, 8), "30x30 is not divisible by the patch size 8"),
        (lambda: PatchEmbed(32, 8)(torch.zeros(1, 4, 32, 32)), r"\(B, 3, H, W\), got \(1, 4, 32, 32\)"),
        (lambda: PatchEmbed(32, 8)(torch.zeros(1, 3, 32, 36)), "32x36 is not divisible"),
    ],
)
def test_wrong_shapes_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_projection_of_a_patch_is_linear_in_its_pixels():
    embed = PatchEmbed((16, 24), 8, in_chans=2, embed_dim=5)
    images = torch.randn(1, 2, 16, 24)
    matrix = embed.proj.weight.permute(0, 2, 3, 1).reshape(5, -1)  # D C P P -> D P*P*C
    torch.testing.assert_close(embed(images), patchify(images, 8) @ matrix.T + embed.proj.bias)
    assert (embed.patch_size, embed.grid_size, embed.num_patches) == ((8, 8), (2, 3), 6)
