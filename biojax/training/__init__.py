"""Training: a state, one compiled step, and a loop that can be stopped and resumed.

>>> import jax, numpy as np, optax
>>> from biojax.models import create_model
>>> from biojax.tasks import Segmentation
>>> task = Segmentation(create_model("unet", out_channels=2, spatial_dims=1, features=(4,)))
>>> batch = {"image": np.ones((2, 8, 1), np.float32), "label": np.ones((2, 8), np.int32)}
>>> optimizer = optax.adam(1e-3)
>>> state = create_state(task, optimizer, jax.random.key(0), batch)
>>> step = make_train_step(task, optimizer, clip_norm=1.0)
>>> fit(step, state, [batch] * 3, steps=3, progress=False).step
3
"""

from biojax.training.checkpoint import Checkpoints
from biojax.training.config import keep_config
from biojax.training.loop import Fit, fit
from biojax.training.state import TrainState, create_state
from biojax.training.step import make_eval_step, make_train_step

__all__ = [
    "Checkpoints",
    "Fit",
    "TrainState",
    "create_state",
    "fit",
    "keep_config",
    "make_eval_step",
    "make_train_step",
]
