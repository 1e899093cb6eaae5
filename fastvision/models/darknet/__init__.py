"""Networks of Darknet: its .cfg and .weights files, Extraction, Darknet-19 and Darknet-53."""

from .classifiers import darknet19, darknet53, extraction
from .config import ConfigError, Section, format_config, parse_config, read_config
from .network import Darknet
from .weights import load_darknet_weights, save_darknet_weights

__all__ = [
    "ConfigError",
    "Darknet",
    "Section",
    "darknet19",
    "darknet53",
    "extraction",
    "format_config",
    "load_darknet_weights",
    "parse_config",
    "read_config",
    "save_darknet_weights",
]
