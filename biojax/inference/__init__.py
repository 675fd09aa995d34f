"""Inference: a trained model over volumes of any size."""

from biojax.inference.sliding_window import predict_volume

__all__ = ["predict_volume"]
