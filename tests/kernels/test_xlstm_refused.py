"""What the recurrences of xLSTM refuse."""

import jax.numpy as jnp
import pytest

from biojax.errors import ConfigError, ShapeError
from biojax.kernels.scan.xlstm import mlstm, mlstm_step, slstm, slstm_step

Q, GATE = jnp.ones((2, 5, 3, 4)), jnp.ones((2, 5, 3))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((Q[0], Q[0], Q[0], GATE[0], GATE[0]), r"query \(5, 3, 4\).*query and key \(b, t, n, k\)"),
        ((Q[:, :0],) * 3 + (GATE[:, :0],) * 2, "none of them empty"),
        ((Q, Q[..., :2], Q, GATE, GATE), r"key \(2, 5, 3, 2\)"),
        ((Q, Q, Q[:, :, :1], GATE, GATE), r"value \(2, 5, 1, 4\)"),
        ((Q, Q, Q, GATE[..., :1], GATE), r"i \(2, 5, 1\)"),
        ((Q, Q, Q, GATE, GATE[:1]), r"f \(1, 5, 3\)"),
        ((Q, Q, Q.astype(int), GATE, GATE), "value of int32, query of float32.*wider than float32"),
        ((Q, Q, Q, GATE * 1j, GATE), "i of complex64"),
    ],
)
def test_what_mlstm_refuses(args, message):
    with pytest.raises(ShapeError, match=f"^mlstm: got .*?{message}"):
        mlstm(*args)


def test_what_else_mlstm_refuses():
    values, zeros = (Q, Q, Q, GATE, GATE), jnp.zeros
    with pytest.raises(ShapeError, match=r"^mlstm: got state0 of 2 parts.*parts C, n, m"):
        mlstm(*values, state0=(Q, GATE))
    state = zeros((2, 3, 4, 4)), zeros((2, 3, 4)), zeros((2, 4))
    with pytest.raises(ShapeError, match=r"^mlstm: got m of state0 of float32 and shape \(2, 4\)"):
        mlstm(*values, state0=state)
    with pytest.raises(ShapeError, match=r"^mlstm_step: got query \(2, 5, 3, 4\).*\(b, n, k\)"):
        mlstm_step(state, *values)
    with pytest.raises(ShapeError, match=r"^mlstm_step: got m of state of float32"):
        mlstm_step(state, *(x[:, 0] for x in values))
    with pytest.raises(ConfigError, match=r"^mlstm: got chunk=0\."):
        mlstm(*values, chunk=0)


@pytest.mark.parametrize(
    ("gates", "w_h", "message"),
    [
        (jnp.ones((2, 3, 4, 5)), jnp.ones((3, 5, 4, 5)), r"gates \(2, 3, 4, 5\).*\(b, t, n, 4, k"),
        (jnp.ones((2, 0, 3, 4, 5)), jnp.ones((3, 5, 4, 5)), "none of them empty"),
        (jnp.ones((2, 6, 3, 3, 5)), jnp.ones((3, 5, 4, 5)), r"gates \(2, 6, 3, 3, 5\)"),
        (jnp.ones((2, 6, 3, 4, 5)), jnp.ones((3, 5, 20)), r"w_h \(3, 5, 20\)"),
        (jnp.ones((2, 6, 3, 4, 5)), jnp.ones((1, 5, 4, 5)), r"w_h \(1, 5, 4, 5\)"),
        (jnp.ones((2, 6, 3, 4, 5), int), jnp.ones((3, 5, 4, 5)), "gates of int32"),
    ],
)
def test_what_slstm_refuses(gates, w_h, message):
    with pytest.raises(ShapeError, match=f"^slstm: got .*?{message}"):
        slstm(gates, w_h)


def test_what_else_slstm_refuses():
    gates, w_h = jnp.ones((2, 6, 3, 4, 5)), jnp.ones((3, 5, 4, 5))
    with pytest.raises(ShapeError, match=r"^slstm: got state0 of 1 parts.*parts h, c, n, m"):
        slstm(gates, w_h, state0=(gates,))
    with pytest.raises(ShapeError, match=r"^slstm: got c of state0 .*shape \(2, 3, 5\)"):
        slstm(gates, w_h, state0=(jnp.ones((2, 3, 5)), gates, gates, gates))
    with pytest.raises(ShapeError, match=r"^slstm_step: got gates \(2, 6, 3, 4, 5\)"):
        slstm_step((jnp.ones((2, 3, 5)),) * 4, gates, w_h)
