"""The encoder of the Transformer.

Vaswani, Shazeer, Parmar, Uszkoreit, Jones, Gomez, Kaiser and Polosukhin, Attention is all you need,
2017.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...ops import Sequential
from .._registry import register
from .._weights import load_weights


class SelfAttention(nn.Module):
    """Attention of several heads, of a sequence to itself.

    Attention(Q, K, V) = softmax(Q K^T / sqrt(d)) V in each of the heads, whose queries, keys and
    values of d = width / heads numbers are linear in the input; a last linear layer mixes the
    heads (section 3.2).
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width must be a multiple of heads, got {width} and {heads}")
        self.heads = heads
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[N, T, width] from [N, T, width]."""
        split = self.queries_keys_values(x).unflatten(-1, (3, self.heads, -1))
        queries, keys, values = split.permute(2, 0, 3, 1, 4)  # [N, heads, T, d] each
        mixed = F.scaled_dot_product_attention(queries, keys, values)
        return self.output(mixed.transpose(1, 2).flatten(2))


class TransformerBlock(nn.Module):
    """Attention and a network of two linear layers, around each of which the input is added.

    ``LayerNorm(x + Dropout(f(x)))`` for both (section 3.1). With ``pre_norm`` it is
    ``x + Dropout(f(LayerNorm(x)))``, so nothing normalizes the residual path (Xiong et al., On
    layer normalization in the transformer architecture, 2020).

    Args:
        width: of the sequence's elements.
        heads: of the attention; divides ``width``.
        hidden: width between the two linear layers.
        dropout: of what is added.
        pre_norm: where the normalization is.

    Raises:
        ValueError: ``heads`` does not divide ``width``.
    """

    def __init__(
        self, width: int, heads: int, hidden: int, dropout: float = 0.1, pre_norm: bool = False
    ) -> None:
        super().__init__()
        self.pre_norm = pre_norm
        self.attention = SelfAttention(width, heads)
        self.feed_forward = Sequential(
            nn.Linear(width, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, width)
        )
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """[N, T, width] from [N, T, width]."""
        if self.pre_norm:
            x = x + self.dropout(self.attention(self.norm1(x)))
            return x + self.dropout(self.feed_forward(self.norm2(x)))
        x = self.norm1(x + self.dropout(self.attention(x)))
        return self.norm2(x + self.dropout(self.feed_forward(x)))


def positions(length: int, width: int) -> Tensor:
    """[length, width] sines and cosines of the position: PE(t, 2i) = sin(t / 10000^(2i / width)),
    PE(t, 2i + 1) = cos of the same (section 3.5)."""
    rates = torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / width))
    angles = torch.arange(length)[:, None] * rates
    return torch.stack((angles.sin(), angles.cos()), -1).flatten(1)[:, :width]


class TransformerEncoder(nn.Module):
    """Embeddings with positions, a stack of blocks, and scores of each element.

    Args:
        symbols: size of the alphabet.
        classes: scores of each element; as many as ``symbols`` if None.
        width, heads, dropout, pre_norm: of the blocks.
        hidden: of the blocks; four times ``width`` if None.
        depth: number of blocks.
        max_length: of a sequence.

    Raises:
        ValueError: ``heads`` does not divide ``width``.
    """

    positions: Tensor

    def __init__(
        self,
        symbols: int = 16,
        classes: int | None = None,
        width: int = 64,
        heads: int = 4,
        hidden: int | None = None,
        depth: int = 3,
        dropout: float = 0.1,
        pre_norm: bool = False,
        max_length: int = 512,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(symbols, width)
        self.register_buffer("positions", positions(max_length, width), persistent=False)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.Sequential(
            *(
                TransformerBlock(width, heads, hidden or 4 * width, dropout, pre_norm)
                for _ in range(depth)
            )
        )
        # blocks that normalize first leave their sum as it is
        self.norm = nn.LayerNorm(width) if pre_norm else None
        self.scores = nn.Linear(width, symbols if classes is None else classes)

    def forward(self, symbols: Tensor) -> Tensor:
        """Scores [N, T, classes] of sequences int64 [N, T]."""
        x = self.embedding(symbols) * math.sqrt(self.embedding.embedding_dim)
        x = self.blocks(self.dropout(x + self.positions[: symbols.shape[1]]))
        return self.scores(x if self.norm is None else self.norm(x))


@register("sequence")
def transformer_encoder(
    *, weights: Any = None, progress: bool = True, **options: Any
) -> TransformerEncoder:
    """The encoder of the Transformer (Vaswani et al. 2017), of three blocks of width 64 where the
    paper has six of 512: 152,016 parameters."""
    model = TransformerEncoder(**options)
    return load_weights(model, "transformer_encoder", weights, progress)
