"""Gated recurrences whose state is an image: over the frames of a clip, the slices of a volume."""

from biojax.errors import ShapeError
from biojax.kernels.dispatch import select
from biojax.kernels.scan import sequential_convolutional
from biojax.kernels.scan.checks import check_chunk, check_one_dtype, initial_state
from biojax.typing import Array, Precision

__all__ = ["conv_gru", "conv_lstm"]


def conv_lstm(
    x: Array,
    w_x: Array,
    w_h: Array,
    bias: Array,
    h0: Array | None = None,
    c0: Array | None = None,
    *,
    reverse: bool = False,
    chunk: int | None = None,
    precision: Precision = None,
    implementation: str | None = None,
) -> tuple[Array, tuple[Array, Array]]:
    """Convolutional long short-term memory.

    i, f, g, o = split(conv(x_t, w_x) + conv(h_{t-1}, w_h) + bias)
    c_t = sigmoid(f) * c_{t-1} + sigmoid(i) * tanh(g)
    h_t = sigmoid(o) * tanh(c_t)

    The gates lie in the order i, f, g, o along the last axis of the kernels, as in `lstm`, which
    this is where images and kernels have one pixel. Convolutions are padded to keep the size of
    the image ("SAME"). The paper's peepholes, by which gates see c as well, are left out.

    Args:
      x: images in order, (b, t, *spatial, c) with one to three spatial axes. Without channels,
        c = 0, the recurrence goes on by itself for t steps.
      w_x: (*k, c, 4 f). w_h: (*k, f, 4 f), whose k may differ from w_x's. bias: (4 f,).
      h0: (b, *spatial, f). c0: (b, *spatial, f). Zeros if None.
      reverse: run from the last image to the first.
      chunk: for gradients keep only the state before each so many images, and compute those in
        between anew; None keeps all.
      precision: passed to every product, as in `jax.lax`.
      implementation: "sequential", or None to choose.

    Returns:
      h: every state, (b, t, *spatial, f), of x's dtype. (h_last, c_last): the last states in the
      order run, (b, *spatial, f) each.

    Raises:
      ShapeError: the arrays do not fit together.
      ConfigError: a chunk without images.

    The carry is held in at least float32. The gates of all images, four numbers for each pixel and
    feature, are held at once, and are with h and c all that the backward pass keeps; with chunk
    those of one chunk at a time. Differentiates in reverse only.
    Source: Shi et al., "Convolutional LSTM network: a machine learning approach for precipitation
    nowcasting", NeurIPS 2015, section 3.1.

    >>> import jax.numpy as jnp
    >>> x, w_x, w_h = jnp.ones((1, 2, 5, 1)), jnp.ones((3, 1, 4)), jnp.zeros((3, 1, 4))
    >>> h, (h_last, c_last) = conv_lstm(x, w_x, w_h, jnp.zeros(4))
    >>> h.shape, h_last.shape, c_last[0, :, 0]
    ((1, 2, 5, 1), (1, 5, 1), Array([1.5..., 1.8..., 1.8..., 1.8..., 1.5...], dtype=float32))
    """
    state = _check("conv_lstm", 4, x, w_x, w_h, bias, chunk)
    h0 = initial_state("conv_lstm", "h0", h0, state, x.dtype)
    c0 = initial_state("conv_lstm", "c0", c0, state, x.dtype)
    run = select(
        "conv_lstm", {"sequential": sequential_convolutional.conv_lstm}, implementation, _rule
    )
    return run(x, w_x, w_h, bias, h0, c0, reverse, precision, chunk)


def conv_gru(
    x: Array,
    w_x: Array,
    w_h: Array,
    bias: Array,
    h0: Array | None = None,
    *,
    reverse: bool = False,
    chunk: int | None = None,
    precision: Precision = None,
    implementation: str | None = None,
) -> tuple[Array, Array]:
    """Convolutional gated recurrent unit.

    x_r, x_z, x_n = split(conv(x_t, w_x) + bias),   h_r, h_z, h_n = split(conv(h_{t-1}, w_h))
    r, z = sigmoid(x_r + h_r), sigmoid(x_z + h_z)
    n    = tanh(x_n + r * h_n)
    h_t  = (1 - z) * n + z * h_{t-1}

    The gates lie in the order r, z, n along the last axis of the kernels, and the reset comes after
    the convolution, as in `gru` with reset="after", which this is where images and kernels have one
    pixel. Convolutions are padded to keep the size of the image ("SAME").

    Args:
      x: images in order, (b, t, *spatial, c) with one to three spatial axes. Without channels,
        c = 0, the recurrence goes on by itself for t steps.
      w_x: (*k, c, 3 f). w_h: (*k, f, 3 f), whose k may differ from w_x's. bias: (3 f,).
      h0: (b, *spatial, f); zeros if None.
      reverse: run from the last image to the first.
      chunk: for gradients keep only the state before each so many images, and compute those in
        between anew; None keeps all.
      precision: passed to every product, as in `jax.lax`.
      implementation: "sequential", or None to choose.

    Returns:
      h: every state, (b, t, *spatial, f), of x's dtype. h_last: the last one in the order run,
      (b, *spatial, f).

    Raises:
      ShapeError: the arrays do not fit together.
      ConfigError: a chunk without images.

    The carry is held in at least float32. The gates of all images are held at once, and are with h
    all that the backward pass keeps: four numbers for each pixel and feature; with chunk those of
    one chunk at a time. Differentiates in reverse only.
    Source: Shi et al., "Deep learning for precipitation nowcasting: a benchmark and a new model",
    NeurIPS 2017, section 3.2, with a leaky ReLU for tanh. Ballas et al., "Delving deeper into
    convolutional networks for learning video representations", ICLR 2016, reset before the
    convolution, which takes two of them for each step.

    >>> import jax.numpy as jnp
    >>> x, w_x, w_h = jnp.ones((1, 2, 5, 1)), jnp.ones((3, 1, 3)), jnp.zeros((3, 1, 3))
    >>> h, h_last = conv_gru(x, w_x, w_h, jnp.zeros(3))
    >>> h[0, 0, :, 0]
    Array([0.114..., 0.047..., 0.047..., 0.047..., 0.114...], dtype=float32)
    """
    state = _check("conv_gru", 3, x, w_x, w_h, bias, chunk)
    h0 = initial_state("conv_gru", "h0", h0, state, x.dtype)
    run = select(
        "conv_gru", {"sequential": sequential_convolutional.conv_gru}, implementation, _rule
    )
    return run(x, w_x, w_h, bias, h0, reverse, precision, chunk)


def _rule() -> tuple[str, str]:
    return "sequential", "the only one"


def _check(
    where: str, gates: int, x: Array, w_x: Array, w_h: Array, bias: Array, chunk: int | None
) -> tuple[int, ...]:
    """The shape of the state, once the arrays are known to fit."""
    features = w_h.shape[-2] if w_h.ndim > 1 else 0
    wide = gates * features
    fits = (
        4 <= x.ndim <= 6
        and w_x.ndim == w_h.ndim == x.ndim - 1
        and 0 not in (*x.shape[1:-1], *w_x.shape[:-2], *w_h.shape)
        and w_x.shape[-2:] == (x.shape[-1], wide)
        and w_h.shape[-1] == wide
        and bias.shape == (wide,)
    )
    if not fits:
        raise ShapeError(
            where,
            f"x {x.shape}, w_x {w_x.shape}, w_h {w_h.shape}, bias {bias.shape}",
            f"x (b, t, *spatial, c), w_x (*k, c, {gates} * f), w_h (*k, f, {gates} * f), "
            f"bias ({gates} * f,), with the same one to three spatial axes",
            "Make the shapes agree",
        )
    check_one_dtype(where, x=x, w_x=w_x, w_h=w_h, bias=bias)
    if chunk is not None:
        check_chunk(where, chunk)
    return (x.shape[0], *x.shape[2:-1], features)
