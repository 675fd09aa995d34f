"""Griffin's recurrence: a linear unit whose decay is gated and whose input keeps its size."""

from functools import partial

import jax
import jax.numpy as jnp

from biojax.errors import ConfigError, ShapeError
from biojax.kernels.dispatch import accumulator
from biojax.kernels.scan.checks import check_dtypes, initial_state
from biojax.kernels.scan.linear import linear_scan
from biojax.typing import Array

__all__ = ["rg_lru", "rg_lru_step"]


def rg_lru(
    x: Array,
    r: Array,
    i: Array,
    a_param: Array,
    *,
    c: float = 8.0,
    h0: Array | None = None,
    reverse: bool = False,
    implementation: str | None = None,
) -> tuple[Array, Array]:
    """Real-gated linear recurrent unit.

    log a_t = -c sigmoid(r_t) softplus(a_param)
    h_t = a_t h_{t-1} + sqrt(1 - a_t^2) sigmoid(i_t) x_t,   h_{-1} = h0

    The gates enter before their sigmoid: that is where the square root has a gradient that stays
    finite, and fades, as a_t goes to 1. It is computed from the logarithm of -log a_t. The code
    published with the paper leaves the square root out at the first step of a sequence.

    Args:
      x: input, (b, t, c).
      r: recurrence gate, (b, t, c); minus infinity keeps the state, and takes nothing in.
      i: input gate, (b, t, c).
      a_param: the rate of each channel, (c,). With r wide open a_t is sigmoid(-a_param)^c: the
        sign is that of the paper's appendix and of the weights published with it.
      c: the strongest exponent of the decay, positive.
      h0: state before the first step, (b, c); zeros if None.
      reverse: run from the last step to the first.
      implementation: of `linear_scan`, or None to choose.

    Returns:
      h: every state, (b, t, c), of x's dtype. h_last: the last one in the order run, (b, c),
      float32 at least.

    Raises:
      ShapeError: the arrays do not fit together.
      ConfigError: c is not positive, or an unknown implementation.

    Decays, inputs and states are computed in at least float32. Time and memory are linear in t.
    Source: De et al., "Griffin: mixing gated linear recurrences with local attention for
    efficient language models", 2024, section 2.4 and appendix A.

    >>> x, gates = jnp.ones((1, 3, 1)), jnp.full((1, 3, 1), 100.0)
    >>> h, h_last = rg_lru(x, gates, gates, jnp.array([0.0]), c=1.0)  # a = 1 / 2
    >>> (h[0, :, 0] / jnp.sqrt(0.75)).round(5)
    Array([1.  , 1.5 , 1.75], dtype=float32)
    """
    where = "rg_lru"
    _check(where, 3, x, r, i, a_param, c)
    h0 = initial_state(where, "h0", h0, (x.shape[0], x.shape[2]), x.dtype)
    a, inputs = _decay_and_input(x, r, i, a_param, c)
    h, h_last = linear_scan(a, inputs, h0, reverse=reverse, implementation=implementation)
    return h.astype(x.dtype), h_last


def rg_lru_step(
    h: Array, x: Array, r: Array, i: Array, a_param: Array, *, c: float = 8.0
) -> tuple[Array, Array]:
    """One step of `rg_lru`.

    Args:
      h: state before the step, (b, c); zeros to begin with.
      x: (b, c). r: (b, c). i: (b, c). a_param: (c,). As there, without time.
      c: as there.

    Returns:
      y: the state in x's dtype, (b, c). h: the same in at least float32.

    Raises:
      ShapeError: the arrays do not fit together.
      ConfigError: c is not positive.

    >>> y, h = rg_lru_step(*jnp.ones((4, 1, 1)), jnp.array([-100.0]))  # a = 1
    >>> y
    Array([[1.]], dtype=float32)
    """
    _check("rg_lru_step", 2, x, r, i, a_param, c)
    h = initial_state("rg_lru_step", "h", h, x.shape, x.dtype)
    a, inputs = _decay_and_input(x, r, i, a_param, c)
    h = a * h + inputs
    return h.astype(x.dtype), h


def _decay_and_input(x, r, i, a_param, c) -> tuple[Array, Array]:
    """a_t and sqrt(1 - a_t^2) sigmoid(i_t) x_t."""
    x, r, i, a_param = (v.astype(accumulator(x.dtype)) for v in (x, r, i, a_param))
    return jnp.exp(-_rate(r, a_param, c) / 2), _gain(r, a_param, c) * jax.nn.sigmoid(i) * x


def _rate(r: Array, a_param: Array, c: float) -> Array:
    """-log a_t^2."""
    return 2 * c * jax.nn.sigmoid(r) * jax.nn.softplus(a_param)


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _gain(r: Array, a_param: Array, c: float) -> Array:
    """sqrt(1 - a_t^2).

    Its slope in the rate is infinite at 0. In the rate's logarithm it is bounded, at
    gain * rate / (exp(rate) - 1) / 2, and so is the logarithm's in r and a_param.
    """
    return jnp.sqrt(-jnp.expm1(-_rate(r, a_param, c)))


@_gain.defjvp
def _gain_jvp(c, primals, tangents):
    r, a_param = primals
    gain = _gain(r, a_param, c)
    rate = jnp.clip(_rate(r, a_param, c), 1e-30, 80.0)
    small = a_param < -40.0  # softplus is its own slope there
    safe = jnp.where(small, 0.0, a_param)
    relative = jnp.where(small, 1.0, jax.nn.sigmoid(safe) / jax.nn.softplus(safe))
    tangent = jax.nn.sigmoid(-r) * tangents[0] + relative * tangents[1]
    return gain, tangent * gain * rate / jnp.expm1(rate) / 2


def _check(where: str, rank: int, x: Array, r: Array, i: Array, a_param: Array, c: float) -> None:
    fits = x.ndim == rank and r.shape == i.shape == x.shape and a_param.shape == x.shape[-1:]
    if not (fits and x.shape[-2] > 0 if rank == 3 else fits):
        axes = "b, t, c" if rank == 3 else "b, c"
        raise ShapeError(
            where,
            f"x {x.shape}, r {r.shape}, i {i.shape}, a_param {a_param.shape}",
            f"x, r and i ({axes}), a_param (c,)" + ("; at least one step" if rank == 3 else ""),
            "Make the shapes agree",
        )
    check_dtypes(where, x=x, r=r, i=i, a_param=a_param)
    if not c > 0:
        raise ConfigError(where, f"c={c}", "a positive number", "Leave c out for 8", "c=8.0")
