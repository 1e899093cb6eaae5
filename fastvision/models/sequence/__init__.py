"""Residual connections beyond images: small models of sequences, and tasks to learn."""

from . import tasks
from .residual_lstm import ResidualLSTM, residual_lstm
from .transformer import TransformerBlock, TransformerEncoder, transformer_encoder
from .wavenet import WaveNet, wavenet

__all__ = [
    "ResidualLSTM",
    "TransformerBlock",
    "TransformerEncoder",
    "WaveNet",
    "residual_lstm",
    "tasks",
    "transformer_encoder",
    "wavenet",
]
