import torch

from mae_hf import MAEEncoder


def test_encoder_stands_alone_on_plain_numbers():
    encoder = MAEEncoder(embed_dim=16, depth=3, num_heads=4)
    tokens = torch.randn(2, 7, 16)
    expected = tokens
    for block in encoder.blocks:
        expected = block(expected)
    torch.testing.assert_close(encoder(tokens), encoder.norm(expected))


def test_drop_path_grows_linearly_from_zero():
    encoder = MAEEncoder(embed_dim=16, depth=5, num_heads=4, drop_path_rate=0.2)
    rates = [block.drop_path.rate for block in encoder.blocks]
    torch.testing.assert_close(rates, [0.0, 0.05, 0.1, 0.15, 0.2])
    assert MAEEncoder(embed_dim=16, depth=1, num_heads=4, drop_path_rate=0.2).blocks[0].drop_path.rate == 0


def test_width_of_the_mlp_is_truncated_as_officially():
    assert MAEEncoder(16, 1, 4, mlp_ratio=2.7).blocks[0].mlp.fc1.out_features == int(16 * 2.7)


def test_width_of_the_mlp_takes_precedence_over_its_ratio():
    assert MAEEncoder(16, 1, 4, mlp_ratio=2.7, mlp_dim=21).blocks[0].mlp.fc1.out_features == 21
