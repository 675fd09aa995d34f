"""Tiny models, and batches that can be resumed."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.ad_checkpoint import checkpoint_name

from biojax.losses import cross_entropy
from biojax.tasks import Segmentation
from biojax.training import create_state, make_train_step


class TinySegmenter(nn.Module):
    """Two layers for each voxel alone, with batch normalisation and dropout if asked for."""

    classes: int = 3
    norm: bool = False
    dropout: float = 0.0
    dtype: jnp.dtype | None = None
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, *, train):
        x = nn.Dense(4, dtype=self.dtype, param_dtype=self.param_dtype)(x)
        if self.norm:
            x = nn.BatchNorm(not train, dtype=self.dtype, param_dtype=self.param_dtype)(x)
        x = checkpoint_name(nn.gelu(x), "block")
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(self.classes, dtype=self.dtype, param_dtype=self.param_dtype)(x)


class Batches:
    """Batch i is drawn from seed i, so that its order can be followed and resumed."""

    def __init__(self, size=4, last=None):
        self.size, self.last, self.position = size, last, 0
        self.seen = []

    def __iter__(self):
        return self

    def __next__(self):
        if self.position == self.last:
            raise StopIteration
        self.seen.append(self.position)
        self.position += 1
        return make_batch(self.position - 1, self.size)

    def get_state(self):
        return {"position": self.position}

    def set_state(self, state):
        self.position = state["position"]


def make_batch(seed, size):
    random = np.random.default_rng(seed)
    image = random.normal(size=(size, 8, 8, 1)).astype(np.float32)
    return {"image": image, "label": (image[..., 0] > 0.5).astype(np.int32)}


def noise(key, sample):
    return {**sample, "image": sample["image"] + 0.1 * jax.random.normal(key, (8, 8, 1))}


def make_run():
    """A step with randomness in it, and the state it starts from."""
    task, optimizer = Segmentation(TinySegmenter(), cross_entropy), optax.adam(0.02)
    state = create_state(task, optimizer, jax.random.key(0), make_batch(0, 4), ema_decay=0.9)
    return make_train_step(task, optimizer, ema_decay=0.9, transform=noise), state


@pytest.fixture(scope="session")
def run():
    return make_run()


@pytest.fixture(scope="session")
def segmenter():
    return TinySegmenter


@pytest.fixture(scope="session")
def segmentation():
    return Segmentation(TinySegmenter(), cross_entropy)


@pytest.fixture(scope="session")
def batches():
    return Batches


@pytest.fixture(scope="session")
def batch():
    return make_batch(0, 16)


@pytest.fixture(scope="session")
def assert_trees_equal():
    """Compare two trees leaf by leaf; bit for bit unless tolerances are given."""

    def compare(actual, expected, **tolerances):
        def plain(leaf):
            typed = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
            return np.asarray(jax.random.key_data(leaf) if typed else leaf)

        assert jax.tree.structure(actual) == jax.tree.structure(expected)
        pairs = zip(
            jax.tree_util.tree_leaves_with_path(actual), jax.tree.leaves(expected), strict=True
        )
        for (path, x), y in pairs:
            check = np.testing.assert_allclose if tolerances else np.testing.assert_array_equal
            check(plain(x), plain(y), err_msg=jax.tree_util.keystr(path), **tolerances)

    return compare
