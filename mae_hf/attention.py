"""Multi-head self-attention with the implementations of transformers (Vaswani et al. 2017; Dosovitskiy et al. 2021).

Shapes: `B` batch, `N` tokens, `D` width, `h` heads of width `d = D / h`.
"""

from torch import Tensor, nn
from transformers import PretrainedConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


def eager_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: object,
) -> tuple[Tensor, Tensor]:
    """Compute attention step by step, in the calling convention of transformers.

    Args:
        module: The attention module; unused here, other implementations read it.
        query: `(B, h, N, d)`.
        key: `(B, h, N, d)`.
        value: `(B, h, N, d)`.
        attention_mask: Always None: every token attends to every other.
        scaling: Factor on the scores.
        dropout: Fraction of the attention weights that is set to zero.
        **kwargs: Unused here, other implementations read them.

    Returns:
        Output `(B, N, h, d)` and weights `(B, h, N, N)`.
    """
    scores = query * scaling @ key.contiguous().transpose(2, 3)  # B h N N; contiguous() avoids a slow strided matmul
    # softmax computes in float32 and rounds; under autocast on a GPU it returns float32, which must be cast back
    weights = nn.functional.dropout(scores.softmax(dim=-1).to(query.dtype), dropout)
    return (weights @ value).transpose(1, 2), weights  # B h N d -> B N h d


class Attention(nn.Module):
    """Self-attention in which every token attends to every other.

    Args:
        dim: Width `D`.
        num_heads: Heads `h`.
        qkv_bias: Give the fused projection a bias.
        attn_drop: Dropout on the attention weights, in [0, 1).
        attn_implementation: "eager", "sdpa" or another implementation of transformers. Inside a model, the model's
            config determines it instead, so that `model.set_attn_implementation` works.

    Raises:
        ValueError: If `num_heads` does not divide `dim`.
    """

    config: PretrainedConfig | None = None  # of the surrounding model, if any
    is_causal = False  # read by sdpa and flash attention

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        *,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        attn_implementation: str = "sdpa",
    ) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"dim {dim} is not divisible by num_heads {num_heads}")
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.scaling = self.head_dim**-0.5
        self.attn_drop = attn_drop
        self.attn_implementation = attn_implementation
        self.qkv = nn.Linear(dim, dim * 3, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, **kwargs: object) -> tuple[Tensor, Tensor | None]:
        """Attend to all tokens.

        Args:
            x: `(B, N, D)`.
            **kwargs: Passed to the attention implementation.

        Returns:
            `(B, N, D)`, and the attention weights `(B, h, N, N)` if the implementation returns them ("eager"), else
            None.
        """
        batch, length, dim = x.shape
        qkv = self.qkv(x).reshape(batch, length, 3, self.num_heads, self.head_dim)  # B N 3D -> B N 3 h d
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # B N 3 h d -> 3 of B h N d
        name = self.attn_implementation if self.config is None else self.config._attn_implementation
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(name, eager_attention)
        dropout = self.attn_drop if self.training else 0.0
        out, weights = attend(self, query, key, value, None, scaling=self.scaling, dropout=dropout, **kwargs)
        return self.proj(out.reshape(batch, length, dim)), weights  # B N h d -> B N D
