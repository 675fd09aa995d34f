"""Inference: a trained model over volumes of any size."""

from biojax.inference.overlay import draw_overlay
from biojax.inference.segmenter import Recipe, Segmenter, load_segmenter
from biojax.inference.sliding_window import predict_volume

__all__ = ["Recipe", "Segmenter", "draw_overlay", "load_segmenter", "predict_volume"]
