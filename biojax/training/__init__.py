"""Training: a state, one compiled step, and a loop that can be stopped and resumed."""

from biojax.training.checkpoint import Checkpoints
from biojax.training.loop import Fit, fit
from biojax.training.state import TrainState, create_state
from biojax.training.step import make_eval_step, make_train_step

__all__ = [
    "Checkpoints",
    "Fit",
    "TrainState",
    "create_state",
    "fit",
    "make_eval_step",
    "make_train_step",
]
