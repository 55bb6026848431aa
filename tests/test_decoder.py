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
    for noise in (torch.arange(6.0), torch.arange(6.0).flip(0)):  # the same patches in another order
        visible, _, ids_restore = random_masking(tokens, 0.0, noise.unsqueeze(0))
        predictions.append(decoder(torch.cat([cls_token, visible], dim=1), ids_restore))
    assert predictions[0].shape == (1, 6, 4 * 4 * 2)
    torch.testing.assert_close(*predictions)


def test_masked_patches_differ_by_position_alone():
    decoder = make().eval()
    tokens, ids_restore = torch.randn(1, 2, 24), torch.arange(6).unsqueeze(0)
    assert decoder(tokens, ids_restore)[0, 1:].unique(dim=0).shape[0] == 5
    torch.nn.init.zeros_(decoder.pos_embed)
    torch.testing.assert_close(decoder(tokens, ids_restore)[0, 1:], decoder(tokens, ids_restore)[0, 1:2].expand(5, -1))


def test_new_decoder_has_frozen_sine_cosine_embeddings_and_a_mask_token():
    decoder = make()
    assert torch.equal(decoder.pos_embed[0], get_2d_sincos_pos_embed(16, (2, 3), cls_token=True))
    assert not decoder.pos_embed.requires_grad
    assert 0 < decoder.mask_token.std() < 0.1


def test_parameters_are_reset_to_their_initial_distribution():
    decoder = make()
    torch.nn.init.zeros_(decoder.pos_embed)
    decoder.reset_parameters(std=10.0)
    assert torch.equal(decoder.pos_embed[0], get_2d_sincos_pos_embed(16, (2, 3), cls_token=True))
    assert 3 < decoder.mask_token.std() < 30


def test_width_of_the_mlp_takes_precedence_over_its_ratio():
    assert make(mlp_ratio=2.7).blocks[0].mlp.fc1.out_features == int(16 * 2.7)
    assert make(mlp_ratio=2.7, mlp_dim=21).blocks[0].mlp.fc1.out_features == 21


def test_a_decoder_is_untrained_until_the_first_step():
    decoder = make()
    torch.nn.init.zeros_(decoder.pred.bias)  # as every model initialises it
    assert decoder.is_untrained
    decoder(torch.randn(1, 6, 24), torch.arange(6).unsqueeze(0)).pow(2).mean().backward()
    torch.optim.SGD(decoder.parameters(), lr=1e-3).step()
    assert not decoder.is_untrained


def test_position_embeddings_are_interpolated_for_one_call_or_permanently():
    decoder = make().eval()
    tokens, ids_restore = torch.randn(1, 4, 24), torch.arange(24).unsqueeze(0)
    once = decoder(tokens, ids_restore, grid_size=(4, 6))
    assert decoder.grid_size == (2, 3) and decoder.pos_embed.shape[1] == 7
    decoder.set_grid_size((4, 6))
    torch.testing.assert_close(decoder(tokens, ids_restore), once)


def test_number_of_patches_must_fit_the_grid():
    with pytest.raises(ValueError, match="6 patches do not form a square image"):
        MAEDecoder(24, 16, 6, patch_size=4)
    with pytest.raises(ValueError, match=r"grid_size \(2, 2\) does not match num_patches 6"):
        MAEDecoder(24, 16, 6, patch_size=4, grid_size=(2, 2))
