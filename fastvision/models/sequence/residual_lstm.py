"""A deep residual LSTM encoder and decoder with attention.

Wu, Schuster, Chen, Le, Norouzi et al., Google's neural machine translation system: bridging the
gap between human and machine translation, 2016.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .._registry import register
from .._weights import load_weights


class Attention(nn.Module):
    """Weighted means of values, with weights from a network of one hidden layer.

    e_ts = v · tanh(W q_t + U h_s), a_t = softmax_s(e_t), c_t = sum_s a_ts h_s (section 3, equation
    4 of the paper).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width, bias=False)
        self.score = nn.Linear(width, 1, bias=False)

    def forward(self, queries: Tensor, values: Tensor) -> Tensor:
        """Contexts [N, T, width] of queries [N, T, width] and values [N, S, width]."""
        hidden = torch.tanh(self.query(queries)[:, :, None] + self.key(values)[:, None])
        return self.score(hidden).squeeze(-1).softmax(-1) @ values


class ResidualLSTM(nn.Module):
    """Encoder and decoder of stacked LSTMs, each of which adds its input to its output.

    Layer i of a stack computes m^i_t = LSTM_i(x^(i-1)_t) and x^i_t = m^i_t + x^(i-1)_t, from the
    third on (section 3.1, equations 5 and 6). The encoder's first layer reads in both directions
    (section 3.2). The first layer of the decoder asks the attention for a context c_t, which all
    layers above get as c_t next to x^(i-1)_t.

    Differs from the paper in that the context is of this step instead of the one before, so that
    each layer runs over the whole sequence in one call, and that the decoder's first layer sees
    no context.

    Args:
        symbols: size of the alphabet of sources and targets.
        width: of embeddings and layers; even.
        depth: layers of the encoder, and of the decoder; at least 2.

    Raises:
        ValueError: ``width`` is odd, or ``depth`` less than 2.
    """

    def __init__(self, symbols: int = 12, width: int = 64, depth: int = 8) -> None:
        super().__init__()
        if width % 2 or depth < 2:
            raise ValueError(
                f"width must be even and depth at least 2, got width={width} and depth={depth}"
            )
        self.source_embedding = nn.Embedding(symbols, width)
        self.target_embedding = nn.Embedding(symbols, width)
        both_ways = nn.LSTM(width, width // 2, batch_first=True, bidirectional=True)
        one_way = (nn.LSTM(width, width, batch_first=True) for _ in range(depth - 1))
        self.encoder = nn.ModuleList([both_ways, *one_way])
        first = nn.LSTM(width, width, batch_first=True)
        above = (nn.LSTM(2 * width, width, batch_first=True) for _ in range(depth - 1))
        self.decoder = nn.ModuleList([first, *above])
        self.attention = Attention(width)
        self.scores = nn.Linear(width, symbols)

    def encode(self, source: Tensor) -> Tensor:
        """Results [N, S, width] of the last layer for a source int64 [N, S]."""
        x = self.source_embedding(source)
        for i, layer in enumerate(self.encoder):
            m = layer(x)[0]
            x = m + x if i >= 2 else m
        return x

    def decode(self, encoded: Tensor, previous: Tensor) -> Tensor:
        """Scores [N, T, symbols] of each next symbol after those in ``previous``, int64 [N, T]."""
        first, *above = self.decoder
        x = first(self.target_embedding(previous))[0]
        context = self.attention(x, encoded)
        for i, layer in enumerate(above, start=1):
            m = layer(torch.cat((x, context), -1))[0]
            x = m + x if i >= 2 else m
        return self.scores(x)

    def forward(self, source: Tensor, previous: Tensor) -> Tensor:
        """Scores [N, T, symbols] for a source int64 [N, S] and the symbols before each target,
        int64 [N, T]."""
        return self.decode(self.encode(source), previous)

    @torch.no_grad()
    def generate(self, source: Tensor, length: int, start: int) -> Tensor:
        """The likeliest symbol at each of ``length`` steps, int64 [N, length], after ``start``."""
        encoded = self.encode(source)
        result = source.new_full((len(source), 1), start)
        for _ in range(length):
            following = self.decode(encoded, result)[:, -1:].argmax(-1)
            result = torch.cat((result, following), 1)
        return result[:, 1:]


@register("sequence")
def residual_lstm(*, weights: Any = None, progress: bool = True, **options: Any) -> ResidualLSTM:
    """A residual LSTM of 8 and 8 layers with attention, after Wu et al. (2016); width 64 where the
    paper has 1024: 649,612 parameters."""
    return load_weights(ResidualLSTM(**options), "residual_lstm", weights, progress)
