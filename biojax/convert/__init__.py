"""Weights from elsewhere: PyTorch's state dicts to biojax's variables, and files to share them."""

from biojax.convert.state_dict import convert_state_dict, read_state_dict
from biojax.convert.weights import load_weights, save_weights

__all__ = ["convert_state_dict", "load_weights", "read_state_dict", "save_weights"]
