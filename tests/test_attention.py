import pytest
import torch

from mae_hf import Attention


def test_attention_equals_the_one_of_pytorch():
    ours, theirs = Attention(24, 4), torch.nn.MultiheadAttention(24, 4, batch_first=True)
    theirs.load_state_dict(
        {
            "in_proj_weight": ours.qkv.weight,
            "in_proj_bias": ours.qkv.bias,
            "out_proj.weight": ours.proj.weight,
            "out_proj.bias": ours.proj.bias,
        }
    )
    x = torch.randn(2, 5, 24)
    expected, expected_weights = theirs(x, x, x, average_attn_weights=False)
    for implementation in ("sdpa", "eager"):
        ours.attn_implementation = implementation
        out, weights = ours(x)
        torch.testing.assert_close(out, expected)
    torch.testing.assert_close(weights, expected_weights)


def test_weights_come_with_eager_attention_only():
    x = torch.randn(1, 5, 24)
    assert Attention(24, 4, attn_implementation="eager")(x)[1].shape == (1, 4, 5, 5)
    assert Attention(24, 4, attn_implementation="sdpa")(x)[1] is None


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_dropout_acts_in_training_only(implementation):
    attention = Attention(24, 4, attn_drop=0.5, attn_implementation=implementation)
    x = torch.randn(1, 5, 24)
    assert not torch.equal(attention(x)[0], attention(x)[0])
    attention.eval()
    assert torch.equal(attention(x)[0], attention(x)[0])


def test_projection_may_go_without_bias():
    assert Attention(24, 4, qkv_bias=False).qkv.bias is None


def test_width_must_be_divisible_by_heads():
    with pytest.raises(ValueError, match="dim 24 is not divisible by num_heads 5"):
        Attention(24, 5)
    with pytest.raises(ValueError, match="num_heads 0"):
        Attention(24, 0)
