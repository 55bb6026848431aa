import pytest
import torch

from mae_hf import MAEDecoder, get_2d_sincos_pos_embed, random_masking


def make(**changes):
    return MAEDecoder(24, 16, 6, patch_size=4, in_chans=2, depth=1, num_heads=4, grid_size=(2, 3), **changes)


def test_prediction_covers_all_patches_in_image_order():
    decoder = make().eval()
    tokens = torch.randn(1, 6, 24)
    cls_token = torch.randn(1, 1, 24)
    predictions = []
    for noise in (torch.arange(6.0), torch.arange(6.0).flip(0)):  # the same patches, shuffled otherwise
        visible, _, ids_restore = random_masking(tokens, 0.0, noise.unsqueeze(0))
        predictions.append(decoder(torch.cat([cls_token, visible], dim=1), ids_restore))
    assert predictions[0].shape == (1, 6, 4 * 4 * 2)
    torch.testing.assert_close(*predictions)


def test_hidden_patches_are_told_apart_by_position_alone():
    decoder = make().eval()
    tokens, ids_restore = torch.randn(1, 2, 24), torch.arange(6).unsqueeze(0)
    assert decoder(tokens, ids_restore)[0, 1:].unique(dim=0).shape[0] == 5
    torch.nn.init.zeros_(decoder.pos_embed)
    torch.testing.assert_close(decoder(tokens, ids_restore)[0, 1:], decoder(tokens, ids_restore)[0, 1:2].expand(5, -1))


def test_fresh_decoder_has_the_sine_cosine_table_frozen_and_a_mask_token():
    decoder = make()
    assert torch.equal(decoder.pos_embed[0], get_2d_sincos_pos_embed(16, (2, 3), cls_token=True))
    assert not decoder.pos_embed.requires_grad
    assert 0 < decoder.mask_token.std() < 0.1


def test_positions_are_resized_for_one_call_or_for_good():
    decoder = make().eval()
    tokens, ids_restore = torch.randn(1, 4, 24), torch.arange(24).unsqueeze(0)
    once = decoder(tokens, ids_restore, grid_size=(4, 6))
    assert decoder.grid_size == (2, 3) and decoder.pos_embed.shape[1] == 7
    decoder.set_grid_size((4, 6))
    torch.testing.assert_close(decoder(tokens, ids_restore), once)


def test_number_of_patches_must_fit_the_grid():
    with pytest.raises(ValueError, match="6 patches do not make a square image"):
        MAEDecoder(24, 16, 6, patch_size=4)
    with pytest.raises(ValueError, match=r"grid_size \(2, 2\) does not have num_patches 6"):
        MAEDecoder(24, 16, 6, patch_size=4, grid_size=(2, 2))
