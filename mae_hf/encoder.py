"""The MAE encoder: a plain ViT applied to visible patches only (He et al. 2021, section 3 "MAE encoder").

Shapes: `B` batch, `N` tokens (class token and visible patches), `D` width.
"""

from torch import Tensor, nn

from .transformer import make_blocks


class MAEEncoder(nn.Module):
    """Transformer blocks and a final norm; tokens, position embeddings and masking belong to the surrounding model.

    Args:
        embed_dim: Width `D`.
        depth: Number of blocks.
        num_heads: Attention heads.
        mlp_ratio: Width inside the MLPs divided by `embed_dim`.
        mlp_dim: Width inside the MLPs; `int(embed_dim * mlp_ratio)` if None.
        qkv_bias: Add a bias to the fused query, key and value projections.
        drop: Dropout on the output of attention and MLP, in [0, 1).
        attn_drop: Dropout on the attention weights, in [0, 1).
        drop_path_rate: Stochastic depth rate of the last block, in [0, 1); it grows linearly from 0 in the first.
        act: Activation of the MLPs.
        eps: Epsilon of the layer norms.
        final_norm: Normalise the output; classifiers with mean pooling normalise after pooling instead.
    """

    def __init__(
        self,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        *,
        mlp_dim: int | None = None,
        qkv_bias: bool = True,
        drop: float = 0.0,
        attn_drop: float = 0.0,
        drop_path_rate: float = 0.0,
        act: str = "gelu",
        eps: float = 1e-6,
        final_norm: bool = True,
    ) -> None:
        super().__init__()
        self.blocks = make_blocks(
            embed_dim,
            depth,
            num_heads,
            int(embed_dim * mlp_ratio) if mlp_dim is None else mlp_dim,
            qkv_bias=qkv_bias,
            drop=drop,
            attn_drop=attn_drop,
            drop_path_rate=drop_path_rate,
            act=act,
            eps=eps,
        )
        self.norm = nn.LayerNorm(embed_dim, eps=eps) if final_norm else nn.Identity()

    def forward(self, x: Tensor, **kwargs: object) -> Tensor:
        """Encode tokens, `(B, N, D)` to `(B, N, D)`; keyword arguments go to the attention implementation."""
        for block in self.blocks:
            x = block(x, **kwargs)
        return self.norm(x)
