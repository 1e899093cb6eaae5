"""Trained models on pictures and videos: what is in them, drawn and as files."""

from .drawing import draw
from .findings import Findings
from .loading import load_predictor
from .pictures import read_picture
from .predictor import Predictor

__all__ = ["Findings", "Predictor", "draw", "load_predictor", "read_picture"]
