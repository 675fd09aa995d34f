"""Mamba-2's recurrence: state space duality."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from biojax.errors import ShapeError
from biojax.kernels.dispatch import accumulator, select
from biojax.kernels.meshes import split_as_input
from biojax.kernels.scan.checks import check_dtypes, chunk_of_products, initial_state, of_states
from biojax.kernels.scan.chunks import by_chunks, segment_sums
from biojax.typing import Array, Precision

__all__ = ["ssd", "ssd_step"]


def ssd(
    x: Array,
    dt: Array,
    A: Array,
    B: Array,
    C: Array,
    D: Array | None = None,
    *,
    h0: Array | None = None,
    chunk: int | None = None,
    reverse: bool = False,
    precision: Precision = None,
    implementation: str | None = None,
) -> tuple[Array, Array]:
    """Selective state space whose decay is one number for each head and step.

    h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t^T,   h_{-1} = h0
    y_t = h_t C_t + D x_t

    Args:
      x: input, (b, t, n, k).
      dt: size of each step, positive, (b, t, n). A step of 0 leaves the state as it is.
      A: rate of each head, negative, (n,).
      B: what of the input enters the state, (b, t, g, s), g dividing n: head i belongs to group
        i // (n / g).
      C: what of the state is read, (b, t, g, s).
      D: what of the input is passed by the state, (n,); none if None.
      h0: state before the first step, (b, n, k, s); zeros if None.
      chunk: steps that are computed at once, and of which gradients keep one state; by platform
        and the size of a state if None.
      reverse: run from the last step to the first.
      precision: passed to every product, as in `jax.lax`; "highest" if None, since all of them
        write or read a state, and none has weights.
      implementation: "chunked" (matrix products within chunks, and a scan over their states),
        "sequential" (step by step), or None to choose.

    Returns:
      y: (b, t, n, k), of x's dtype. h_last: the last state in the order run, (b, n, k, s),
      float32 at least.

    Raises:
      ShapeError: the arrays do not fit together.
      ConfigError: a chunk without steps, or an unknown implementation.

    The state and all sums are held in at least float32; no positive number is exponentiated.
    Beside copies of inputs and outputs "chunked" takes memory for (b, n, chunk, chunk) a few
    times, and gradients for one state in each chunk, (t / chunk, b, n, k, s); "sequential" takes
    memory for the states of one chunk, (chunk, b, n, k, s), instead of the former. Time is linear
    in t.
    Source: Dao and Gu, "Transformers are SSMs", ICML 2024, section 6 and listing 1.

    >>> one, dt = jnp.ones((1, 3, 1, 1)), jnp.full((1, 3, 1), jnp.log(2.0))
    >>> y, h_last = ssd(one, dt, jnp.array([-1.0]), one, one)
    >>> y[0, :, 0, 0] / jnp.log(2.0)
    Array([1.  , 1.5 , 1.75], dtype=float32)
    """
    where = "ssd"
    _check(where, 2, x, dt, A, B, C, D)
    chunk = chunk_of_products(where, chunk, x.shape[-1], B.shape[-1])
    h0 = initial_state(where, "h0", h0, (x.shape[0], *x.shape[2:], B.shape[-1]), x.dtype)

    def rule() -> tuple[str, str]:
        return "chunked", "matrix products, by far the faster with gradients"

    chunks = {"chunked": _matrices, "sequential": _steps}
    implementations = {name: split_as_input(partial(_scan, each)) for name, each in chunks.items()}
    run = select(where, implementations, implementation, rule)
    return run(x, dt, A, B, C, D, h0, chunk, reverse, of_states(precision))


def ssd_step(
    h: Array,
    x: Array,
    dt: Array,
    A: Array,
    B: Array,
    C: Array,
    D: Array | None = None,
    *,
    precision: Precision = None,
) -> tuple[Array, Array]:
    """One step of `ssd`.

    Args:
      h: state before the step, (b, n, k, s); zeros to begin with.
      x: (b, n, k). dt: (b, n). A: (n,). B, C: (b, g, s). D: (n,). As there, without time.
      precision: as there.

    Returns:
      y: (b, n, k), of x's dtype. h: the state after the step, float32 at least.

    Raises:
      ShapeError: the arrays do not fit together.

    >>> h, one = jnp.ones((1, 1, 1, 1)), jnp.ones((1, 1, 1))
    >>> y, h = ssd_step(h, one, jnp.zeros((1, 1)), jnp.array([-1.0]), one, one)
    >>> y.ravel()
    Array([1.], dtype=float32)
    """
    _check("ssd_step", 1, x, dt, A, B, C, D)
    h = initial_state("ssd_step", "h", h, (*x.shape, B.shape[-1]), x.dtype)
    groups, wide = B.shape[1], h.dtype
    h, u, size, rate = (
        _by_group(v.astype(wide), axis, groups) for v, axis in ((h, 1), (x, 1), (dt, 1), (A, 0))
    )
    y, h = _step(h, u, size, rate, B.astype(wide), C.astype(wide), of_states(precision))
    y = y.reshape(x.shape)
    if D is not None:
        y += D.astype(wide)[:, None] * x
    return y.astype(x.dtype), h.reshape(*x.shape, -1)


@partial(jax.jit, static_argnames=["of_chunk", "chunk", "reverse", "precision"])
def _scan(of_chunk, x, dt, A, B, C, D, h0, chunk, reverse, precision) -> tuple[Array, Array]:
    """The heads are split in groups, (..., n, ...) to (..., g, r, ...), while it runs."""
    b, t, n, k = x.shape
    groups, wide = B.shape[2], accumulator(x.dtype)
    A = _by_group(A.astype(wide), 0, groups)
    bypass = None if D is None else _by_group(D.astype(wide), 0, groups)[..., None]

    def run(h, *parts):
        u, *rest = (part.astype(wide) for part in parts)
        y, h = of_chunk(h, u, rest[0], A, *rest[1:], precision)
        if bypass is not None:
            y += bypass * u
        return y.astype(x.dtype), h

    arrays = _by_group(x, 2, groups), _by_group(dt, 2, groups), B, C
    # With dt = 0 a step decays by exp(0) = 1 and adds 0: it fills chunks without a trace.
    y, h = by_chunks(run, _by_group(h0, 1, groups), arrays, (0, 0, 0, 0), chunk, reverse)
    return y.reshape(b, t, n, k), h.reshape(h0.shape)


def _by_group(x: Array, axis: int, groups: int) -> Array:
    heads = x.shape[axis]
    return x.reshape(*x.shape[:axis], groups, heads // groups, *x.shape[axis + 1 :])


def _matrices(h, x, dt, A, B, C, precision: Precision) -> tuple[Array, Array]:
    """One chunk, [i, j] what step j adds to the output of step i.

    h (b, g, r, k, s), x (b, t, g, r, k), dt (b, t, g, r), A (g, r), B and C (b, t, g, s).
    """
    einsum = partial(jnp.einsum, precision=precision)
    log_decay = jnp.moveaxis(dt * A, 1, -1)
    sums = segment_sums(log_decay)
    decay = jnp.exp(sums)
    from_h = jnp.exp(sums[..., 0] + log_decay[..., :1])
    inputs = dt[..., None] * x
    scores = decay * einsum("bigs,bjgs->bgij", C, B)[:, :, None]
    y = einsum("bgrij,bjgrk->bigrk", scores, inputs)
    y += jnp.moveaxis(from_h, -1, 1)[..., None] * einsum("bigs,bgrks->bigrk", C, h)
    kept = jnp.moveaxis(decay[..., -1, :], -1, 1)[..., None] * inputs
    h = from_h[..., -1, None, None] * h + einsum("bjgrk,bjgs->bgrks", kept, B)
    return y, h


def _steps(h, x, dt, A, B, C, precision: Precision) -> tuple[Array, Array]:
    """One chunk, step by step. Shapes as in `_matrices`."""

    def body(h, parts):
        x, dt, B, C = parts
        y, h = _step(h, x, dt, A, B, C, precision)
        return h, y

    h, y = lax.scan(body, h, tuple(jnp.moveaxis(v, 1, 0) for v in (x, dt, B, C)))
    return jnp.moveaxis(y, 0, 1), h


def _step(h, x, dt, A, B, C, precision: Precision) -> tuple[Array, Array]:
    """Shapes as in `_matrices`, without time."""
    inputs = (dt[..., None] * x)[..., None] * B[:, :, None, None]
    h = jnp.exp(dt * A)[..., None, None] * h + inputs
    return jnp.einsum("bgrks,bgs->bgrk", h, C, precision=precision), h


def _check(where: str, before: int, x, dt, A, B, C, D) -> None:
    """The arrays have `before` axes before their heads: batch and time, or batch."""
    bypass = A if D is None else D
    fits = (
        x.ndim == before + 2
        and min(x.shape[1:-1]) > 0
        and dt.shape == x.shape[:-1]
        and A.shape == bypass.shape == x.shape[-2:-1]
        and B.shape == C.shape
        and B.ndim == before + 2
        and B.shape[:before] == x.shape[:before]
        and B.shape[-2] > 0
        and x.shape[-2] % B.shape[-2] == 0
    )
    if not fits:
        axes = "b, t" if before == 2 else "b"
        raise ShapeError(
            where,
            f"x {x.shape}, dt {dt.shape}, A {A.shape}, B {B.shape}, C {C.shape}, "
            f"D {None if D is None else D.shape}",
            f"x ({axes}, n, k), dt ({axes}, n), A (n,), B and C ({axes}, g, s), D (n,), n a "
            "multiple of g" + ("; at least one step" if before == 2 else ""),
            "Make the shapes agree",
        )
    check_dtypes(where, x=x, dt=dt, A=A, B=B, C=C, D=bypass)
