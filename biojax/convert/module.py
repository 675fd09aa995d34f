"""How a module of PyTorch is named here."""

from typing import NamedTuple

__all__ = ["Module"]


class Module(NamedTuple):
    """A module of PyTorch and the same one in biojax, or a part of it.

    Attributes:
      torch: its name in the state dict, without `.weight` and so on.
      path: where its parameters are in biojax, with slashes; empty for what the original holds but
        never uses, which is left out.
      layout: of its kernel: "conv", "transposed" or "depthwise transposed". "array" is a parameter
        without a module, whose names, there and here, are whole.
      rows: which part of PyTorch's arrays, along their first axis (of an "array" that before the
        last, as if there were but two), where one holds what are several here.
    """

    torch: str
    path: str
    layout: str = "conv"
    rows: slice = slice(None)
