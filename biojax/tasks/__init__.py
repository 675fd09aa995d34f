"""What a model is trained for: batch in, loss and metrics out."""

from biojax.tasks.classification import Classification
from biojax.tasks.segmentation import Segmentation, deep_supervision_loss
from biojax.tasks.task import Task, apply_model, init_variables

__all__ = [
    "Classification",
    "Segmentation",
    "Task",
    "apply_model",
    "deep_supervision_loss",
    "init_variables",
]
