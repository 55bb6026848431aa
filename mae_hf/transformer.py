"""The transformer block of encoder and decoder (Dosovitskiy et al. 2021, section 3.1).

Shapes: `B` batch, `N` tokens, `D` width.
"""

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer

from .attention import Attention


class Mlp(nn.Module):
    """Two linear layers with an activation in between.

    Args:
        dim: Width `D` of input and output.
        hidden_dim: Width between the layers.
        act: Name of an activation in transformers; "gelu" is the exact one, as in the official model.
    """

    def __init__(self, dim: int, hidden_dim: int, act: str = "gelu") -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.act = ACT2FN[act]
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, N, D)` to `(B, N, D)`."""
        return self.fc2(self.act(self.fc1(x)))


class DropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016): in training, drop a residual branch for some images and rescale the others.

    Args:
        rate: Probability that the branch is dropped for an image, in [0, 1).

    Raises:
        ValueError: If `rate` is outside [0, 1).
    """

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        if not 0 <= rate < 1:
            raise ValueError(f"rate must be in [0, 1), got {rate}")
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, N, D)` to `(B, N, D)`."""
        if self.rate == 0.0 or not self.training:
            return x
        kept = torch.rand(x.shape[0], 1, 1, device=x.device) >= self.rate  # B 1 1: one draw per image
        return x * kept.to(x.dtype) / (1 - self.rate)


class Block(GradientCheckpointingLayer):
    """Pre-norm transformer block: attention, then MLP, each with a residual connection.

    Args:
        dim: Width `D`.
        num_heads: Attention heads.
        mlp_dim: Width inside the MLP.
        qkv_bias: Add a bias to the fused query, key and value projection.
        drop: Dropout on the output of attention and MLP, in [0, 1).
        attn_drop: Dropout on the attention weights, in [0, 1).
        drop_path: Stochastic depth rate, in [0, 1).
        act: Activation of the MLP.
        eps: Epsilon of the layer norms; 1e-6 as in the official model (`mae_vit_*` in models_mae.py).
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_dim: int,
        *,
        qkv_bias: bool = True,
        drop: float = 0.0,
        attn_drop: float = 0.0,
        drop_path: float = 0.0,
        act: str = "gelu",
        eps: float = 1e-6,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.attn = Attention(dim, num_heads, qkv_bias=qkv_bias, attn_drop=attn_drop)
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.mlp = Mlp(dim, mlp_dim, act)
        self.drop = nn.Dropout(drop)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, **kwargs: object) -> Tensor:
        """Map `(B, N, D)` to `(B, N, D)`; keyword arguments go to the attention implementation."""
        attended, _ = self.attn(self.norm1(x), **kwargs)
        x = x + self.drop_path(self.drop(attended))
        return x + self.drop_path(self.drop(self.mlp(self.norm2(x))))


def make_blocks(
    dim: int,
    depth: int,
    num_heads: int,
    mlp_dim: int,
    *,
    qkv_bias: bool = True,
    drop: float = 0.0,
    attn_drop: float = 0.0,
    drop_path_rate: float = 0.0,
    act: str = "gelu",
    eps: float = 1e-6,
) -> nn.ModuleList:
    """Build the blocks of an encoder or a decoder.

    Args:
        dim: Width `D`.
        depth: Number of blocks.
        num_heads: Attention heads.
        mlp_dim: Width inside the MLPs.
        qkv_bias: Add a bias to the fused query, key and value projections.
        drop: Dropout on the output of attention and MLP, in [0, 1).
        attn_drop: Dropout on the attention weights, in [0, 1).
        drop_path_rate: Stochastic depth rate of the last block, in [0, 1); it grows linearly from 0 in the first.
        act: Activation of the MLPs.
        eps: Epsilon of the layer norms.

    Returns:
        The blocks, first to last.
    """
    drop_paths = [drop_path_rate * n / max(depth - 1, 1) for n in range(depth)]
    return nn.ModuleList(
        Block(
            dim,
            num_heads,
            mlp_dim,
            qkv_bias=qkv_bias,
            drop=drop,
            attn_drop=attn_drop,
            drop_path=drop_path,
            act=act,
            eps=eps,
        )
        for drop_path in drop_paths
    )
