"""The recurrences of xLSTM, with a matrix and with a scalar for memory and exponential gates."""

import math

import jax

from biojax.errors import ShapeError
from biojax.kernels.dispatch import select
from biojax.kernels.scan import chunked_mlstm, sequential_slstm
from biojax.kernels.scan.checks import (
    check_chunk,
    check_dtypes,
    chunk_of_products,
    initial_state,
    of_states,
)
from biojax.typing import Array, Precision

__all__ = ["mlstm", "mlstm_step", "slstm", "slstm_step"]

MatrixState = tuple[Array, Array, Array]
ScalarState = tuple[Array, Array, Array, Array]


def mlstm(
    query: Array,
    key: Array,
    value: Array,
    i: Array,
    f: Array,
    *,
    state0: MatrixState | None = None,
    scale: float | None = None,
    chunk: int | None = None,
    reverse: bool = False,
    precision: Precision = None,
    implementation: str | None = None,
) -> tuple[Array, MatrixState]:
    """LSTM whose memory is a matrix of keys and values; without weights, so parallel in time.

    C_t = sigmoid(f_t) C_{t-1} + exp(i_t) scale k_t v_t^T
    n_t = sigmoid(f_t) n_{t-1} + exp(i_t) scale k_t
    h_t = C_t^T q_t / max(|n_t . q_t|, 1)

    So that no exponential overflows, C and n are held as multiples of exp(m),

    m_t = max(log sigmoid(f_t) + m_{t-1}, i_t),   at least -1e30,

    and the 1 is exp(-m_t), for m beyond 40 exp(-40). h does not depend on m; no gradient flows
    through it. The paper's output gate is left to the caller.

    Args:
      query: (b, t, n, k). key: (b, t, n, k). value: (b, t, n, v).
      i: input gate before its exponential, (b, t, n); minus infinity takes nothing in.
      f: forget gate before its sigmoid, (b, t, n); minus infinity forgets all.
      state0: C (b, n, k, v), n (b, n, k) and m (b, n) before the first step; zeros if None.
      scale: of the keys; 1 / sqrt(k) if None.
      chunk: steps that are computed at once, and of which gradients keep one state; by platform
        and the size of a state if None.
      reverse: run from the last step to the first.
      precision: passed to every product, as in `jax.lax`; "highest" if None, since all of them
        write or read a state, and none has weights.
      implementation: "chunked" (matrix products within chunks, and a scan over their states),
        "parallel" (all steps in one chunk), "sequential" (step by step), or None to choose.

    Returns:
      h: (b, t, n, v), of value's dtype. (C, n, m): the last state in the order run, float32 at
      least.

    Raises:
      ShapeError: the arrays do not fit together.
      ConfigError: a chunk without steps, or an unknown implementation.

    States and sums are held in at least float32. Beside copies of inputs and outputs "chunked"
    takes memory for (b, n, chunk, chunk) a few times, and gradients for one state in each chunk,
    (t / chunk, b, n, k, v); "sequential" takes memory for the states of one chunk instead of the
    former. Time is linear in t. "parallel" takes memory and time quadratic in t.
    Source: Beck et al., "xLSTM: extended long short-term memory", NeurIPS 2024, section 2.3 and
    appendix A.3; in chunks: Beck et al., "Tiled flash linear attention", NeurIPS 2025.

    >>> import jax.numpy as jnp
    >>> one, gate = jnp.ones((1, 3, 1, 1)), jnp.zeros((1, 3, 1))
    >>> h, (C, n, m) = mlstm(one, one, one, gate, gate)  # half is forgotten
    >>> n.ravel() * jnp.exp(m)[0]
    Array([1.75], dtype=float32)
    >>> h.ravel()
    Array([1., 1., 1.], dtype=float32)
    """
    where = "mlstm"
    _check_mlstm(where, 2, query, key, value, i, f)
    chunk = chunk_of_products(where, chunk, query.shape[-1], value.shape[-1])
    state0 = _initial_mlstm(where, "state0", state0, query, value)
    scale = math.sqrt(1 / query.shape[-1]) if scale is None else scale
    implementations = {
        "chunked": chunked_mlstm.chunked,
        "parallel": chunked_mlstm.parallel,
        "sequential": chunked_mlstm.sequential,
    }

    def rule() -> tuple[str, str]:
        return "chunked", "matrix products, by far the faster with gradients"

    run = select(where, implementations, implementation, rule)
    h, C, n, m = run(query, key, value, i, f, *state0, scale, chunk, reverse, of_states(precision))
    return h, (C, n, m)


def mlstm_step(
    state: MatrixState,
    query: Array,
    key: Array,
    value: Array,
    i: Array,
    f: Array,
    *,
    scale: float | None = None,
    precision: Precision = None,
) -> tuple[Array, MatrixState]:
    """One step of `mlstm`.

    Args:
      state: C (b, n, k, v), n (b, n, k) and m (b, n) before the step; zeros to begin with.
      query: (b, n, k). key: (b, n, k). value: (b, n, v). i: (b, n). f: (b, n). As there, without
        time.
      scale: of the keys; 1 / sqrt(k) if None.
      precision: as there.

    Returns:
      h: (b, n, v), of value's dtype. The state after the step, float32 at least.

    Raises:
      ShapeError: the arrays do not fit together.

    >>> import jax.numpy as jnp
    >>> state = jnp.zeros((1, 1, 1, 1)), jnp.zeros((1, 1, 1)), jnp.zeros((1, 1))
    >>> one = jnp.ones((1, 1, 1))
    >>> h, state = mlstm_step(state, one, one, one, jnp.log(one[0] / 2), one[0])
    >>> h.ravel()
    Array([0.5], dtype=float32)
    """
    where = "mlstm_step"
    _check_mlstm(where, 1, query, key, value, i, f)
    state = _initial_mlstm(where, "state", state, query, value)
    scale = math.sqrt(1 / query.shape[-1]) if scale is None else scale
    q, k, v, i, f = (x.astype(state[0].dtype) for x in (query, key, value, i, f))
    inputs = q, scale * k, v, i, jax.nn.log_sigmoid(f)
    h, state = chunked_mlstm.step(state, *inputs, of_states(precision))
    return h.astype(value.dtype), state


def slstm(
    gates: Array,
    w_h: Array,
    *,
    state0: ScalarState | None = None,
    reverse: bool = False,
    chunk: int | None = None,
    precision: Precision = None,
    implementation: str | None = None,
) -> tuple[Array, ScalarState]:
    """LSTM with exponential input gates and a normaliser, whose heads see themselves alone.

    i, f, z, o = gates_t + h_{t-1} W_h              for each head
    c_t = sigmoid(f) c_{t-1} + exp(i) tanh(z)
    n_t = sigmoid(f) n_{t-1} + exp(i)
    h_t = sigmoid(o) c_t / n_t

    So that no exponential overflows, c and n are held as multiples of exp(m),

    m_t = max(log sigmoid(f) + m_{t-1}, i),   at the first step i, at least -1e30,

    on which h does not depend; no gradient flows through it. Until anything is taken in, h is 0.
    For the forget gate the paper offers an exponential as well.

    Args:
      gates: x_t W_x + bias, (b, t, n, 4, k), the gates in the order i, f, z, o.
      w_h: weights of the state, (n, k, 4, k), the gates in the same order.
      state0: h, c, n and m before the first step, (b, n, k) each; zeros if None.
      reverse: run from the last step to the first.
      chunk: for gradients keep only the state before each so many steps, and compute those in
        between anew; None keeps all.
      precision: passed to every product, as in `jax.lax`.
      implementation: "sequential", or None to choose.

    Returns:
      h: (b, t, n, k), of gates' dtype. (h, c, n, m): the last state in the order run, float32 at
      least.

    Raises:
      ShapeError: the arrays do not fit together.
      ConfigError: a chunk without steps, or an unknown implementation.

    States are held in at least float32. For the gradient the state of every step is kept, with
    chunk those of one chunk at a time, and the rest computed anew. Differentiates in reverse only.
    Source: Beck et al., "xLSTM: extended long short-term memory", NeurIPS 2024, section 2.2 and
    appendix A.2.

    >>> import jax.numpy as jnp
    >>> gates = jnp.zeros((1, 3, 1, 4, 1)).at[..., 2, :].set(jnp.inf)  # z = 1
    >>> h, (_, c, n, m) = slstm(gates, jnp.zeros((1, 1, 4, 1)))
    >>> h.ravel(), n.ravel() * jnp.exp(m).ravel()
    (Array([0.5, 0.5, 0.5], dtype=float32), Array([1.75], dtype=float32))
    """
    where = "slstm"
    _check_slstm(where, 2, gates, w_h)
    if chunk is not None:
        check_chunk(where, chunk)
    state0 = _initial_slstm(where, "state0", state0, gates)
    implementations = {"sequential": sequential_slstm.slstm}
    run = select(where, implementations, implementation, lambda: ("sequential", "the only one"))
    return run(gates, w_h, *state0, reverse, chunk, precision)


def slstm_step(
    state: ScalarState, gates: Array, w_h: Array, *, precision: Precision = None
) -> tuple[Array, ScalarState]:
    """One step of `slstm`.

    Args:
      state: h, c, n and m before the step, (b, n, k) each; zeros to begin with.
      gates: (b, n, 4, k). w_h: (n, k, 4, k). As there, without time.
      precision: as there.

    Returns:
      h: (b, n, k), of gates' dtype. The state after the step, float32 at least.

    Raises:
      ShapeError: the arrays do not fit together.

    >>> import jax.numpy as jnp
    >>> gates = jnp.zeros((1, 1, 4, 1)).at[..., 2, :].set(jnp.inf)  # z = 1
    >>> h, state = slstm_step((jnp.zeros((1, 1, 1)),) * 4, gates, jnp.zeros((1, 1, 4, 1)))
    >>> h.ravel()
    Array([0.5], dtype=float32)
    """
    _check_slstm("slstm_step", 1, gates, w_h)
    state = _initial_slstm("slstm_step", "state", state, gates)
    state = sequential_slstm.step(state, gates, w_h, precision)
    return state[0].astype(gates.dtype), state


def _initial_mlstm(
    where: str, name: str, state: MatrixState | None, query: Array, value: Array
) -> MatrixState:
    heads, k, v = *query.shape[-2:], value.shape[-1]
    shapes = [(query.shape[0], heads, *rest) for rest in ((k, v), (k,), ())]
    C, n, m = _initial(where, name, state, shapes, ("C", "n", "m"), value.dtype)
    return C, n, m


def _initial_slstm(where: str, name: str, state: ScalarState | None, gates: Array) -> ScalarState:
    shapes = [(gates.shape[0], gates.shape[-3], gates.shape[-1])] * 4
    h, c, n, m = _initial(where, name, state, shapes, ("h", "c", "n", "m"), gates.dtype)
    return h, c, n, m


def _initial(where, name, state, shapes, names, dtype) -> list[Array]:
    if state is not None and len(state) != len(names):
        raise ShapeError(
            where,
            f"{name} of {len(state)} parts",
            f"the parts {', '.join(names)}",
            f"Pass the state that {where} returned",
        )
    parts = state or [None] * len(names)
    return [
        initial_state(where, f"{each} of {name}", part, shape, dtype)
        for each, part, shape in zip(names, parts, shapes, strict=True)
    ]


def _check_mlstm(where: str, before: int, query, key, value, i, f) -> None:
    """The arrays have `before` axes before their heads: batch and time, or batch."""
    fits = (
        query.ndim == value.ndim == before + 2
        and query.shape == key.shape
        and query.shape[:-1] == value.shape[:-1] == i.shape == f.shape
        and min(query.shape[1:]) > 0
    )
    if not fits:
        axes = "b, t, n" if before == 2 else "b, n"
        raise ShapeError(
            where,
            f"query {query.shape}, key {key.shape}, value {value.shape}, i {i.shape}, f {f.shape}",
            f"query and key ({axes}, k), value ({axes}, v), i and f ({axes}), none of them empty",
            "Make the shapes agree",
        )
    check_dtypes(where, value=value, query=query, key=key, i=i, f=f)


def _check_slstm(where: str, before: int, gates: Array, w_h: Array) -> None:
    fits = gates.ndim == before + 3 and w_h.ndim == 4 and min(gates.shape[1:]) > 0
    if not (
        fits
        and w_h.shape == (gates.shape[-3], gates.shape[-1], 4, gates.shape[-1])
        and gates.shape[-2] == 4
    ):
        axes = "b, t, n" if before == 2 else "b, n"
        raise ShapeError(
            where,
            f"gates {gates.shape}, w_h {w_h.shape}",
            f"gates ({axes}, 4, k), w_h (n, k, 4, k), none of them empty",
            "Make the shapes agree",
        )
    check_dtypes(where, gates=gates, w_h=w_h)
