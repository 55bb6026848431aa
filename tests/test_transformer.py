import pytest
import torch

from mae_hf import Block, Mlp
from mae_hf.transformer import DropPath, make_blocks


def test_mlp_uses_the_exact_gelu():
    mlp, x = Mlp(4, 8), torch.randn(2, 3, 4)
    torch.testing.assert_close(mlp(x), mlp.fc2(torch.nn.functional.gelu(mlp.fc1(x))))


def test_block_adds_both_branches_to_its_input():
    block, x = Block(16, 4, 64, eps=1e-5), torch.randn(2, 3, 16)
    middle = x + block.attn(block.norm1(x))[0]
    torch.testing.assert_close(block(x), middle + block.mlp(block.norm2(middle)))
    assert block.norm1.eps == block.norm2.eps == 1e-5
    assert Block(16, 4, 64).norm1.eps == 1e-6


def test_drop_path_drops_whole_images_and_keeps_the_mean():
    torch.manual_seed(0)
    dropped = DropPath(0.25)(torch.ones(4000, 2, 3))
    assert set(dropped.flatten().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    assert (dropped == dropped[:, :1, :1]).all()
    assert abs(dropped.mean() - 1) < 0.05
    assert torch.equal(DropPath(0.25).eval()(torch.ones(8, 2, 3)), torch.ones(8, 2, 3))
    with pytest.raises(ValueError, match=r"rate must be in \[0, 1\), got 1.0"):
        DropPath(1.0)


def test_dropout_of_a_block_acts_in_training_only():
    block, x = Block(16, 4, 64, drop=0.5), torch.randn(1, 3, 16)
    assert not torch.equal(block(x), block(x))
    assert torch.equal(block.eval()(x), block(x))
    torch.testing.assert_close(Block(16, 4, 64, drop=1.0)(x), x)  # nothing is left of both branches


def test_blocks_are_made_alike_but_for_drop_path_which_grows_linearly_from_zero():
    blocks = make_blocks(
        16, 5, 4, 40, qkv_bias=False, drop=0.1, attn_drop=0.2, drop_path_rate=0.2, act="relu", eps=1e-5
    )
    torch.testing.assert_close([block.drop_path.rate for block in blocks], [0.0, 0.05, 0.1, 0.15, 0.2])
    for block in blocks:
        assert block.mlp.fc1.out_features == 40 and block.attn.num_heads == 4 and block.attn.qkv.bias is None
        assert (block.drop.p, block.attn.attn_drop, block.norm1.eps, block.norm2.eps) == (0.1, 0.2, 1e-5, 1e-5)
        assert isinstance(block.mlp.act, torch.nn.ReLU)
    assert make_blocks(16, 1, 4, 64, drop_path_rate=0.2)[0].drop_path.rate == 0
