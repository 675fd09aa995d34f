"""Swin UNETR: its numbers of parameters, what is dropped, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from biojax.errors import ConfigError, ShapeError
from biojax.models import SwinUNETR, count_parameters, create_model, resize_windows
from biojax.modules import SwinBlock


@pytest.mark.parametrize(
    ("name", "features", "in_channels", "out_channels", "count"),
    [
        ("swin_unetr", 48, 1, 14, 62_187_296),
        ("swin_unetr", 48, 4, 3, 62_191_941),
        ("swin_unetr_v2", 48, 1, 21, 72_762_999),
        ("swin_unetr_v2", 96, 1, 21, 290_392_695),
        ("swin_unetr_v2", 192, 1, 21, 1_160_845_431),
    ],
)
def test_counts(name, features, in_channels, out_channels, count):
    model = create_model(name, out_channels=out_channels, features=features)
    assert model.stride == (32, 32, 32)
    assert count_parameters(model, (1, 32, 32, 32, in_channels)) == count


def test_every_second_block_is_shifted_and_drops_more(monkeypatch):
    seen = []

    def block(heads, window, shifted, ratio, bias, rate, *args, **options):
        seen.append((heads, shifted, rate))
        return SwinBlock(heads, window, shifted, ratio, bias, rate, *args, **options)

    monkeypatch.setattr("biojax.models.swin_unetr.SwinBlock", block)
    fields = {"num_blocks": (2, 3), "num_heads": (1, 2), "drop_path_rate": 0.2}
    model = SwinUNETR(2, 1, 4, window_size=3, **fields)
    jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 16, 1)))
    assert seen == [
        (heads, shifted, pytest.approx(rate))
        for heads, shifted, rate in [
            (1, False, 0.0),
            (1, True, 0.05),
            (2, False, 0.1),
            (2, True, 0.15),
            (2, False, 0.2),
        ]
    ]


def test_windows_of_another_size():
    model = SwinUNETR(2, 2, 4, (2,), (2,), window_size=(3, 2))
    x = jnp.ones((1, 8, 8, 1))
    small, large = (
        jax.eval_shape(each.init, jax.random.key(0), x)["params"]
        for each in (model, model.clone(window_size=(4, 3)))
    )

    def offsets(leaf):  # as many as rows; those of both axes, one after the other
        return jnp.broadcast_to(jnp.arange(len(leaf), dtype=leaf.dtype)[:, None], leaf.shape)

    params = {name: jax.tree.map(jnp.zeros_like, part) for name, part in small.items()}
    for j in range(2):
        attention = params[f"stage0_block{j}"]["attention"]
        attention["table"] = offsets(attention["table"])
    found = resize_windows(params, (3, 2), (4, 3))
    assert jax.tree.map(jnp.shape, found) == jax.tree.map(jnp.shape, large)
    table = found["stage0_block1"]["attention"]["table"][:, 0].reshape(7, 5)
    np.testing.assert_allclose(table[3], [6, 6.4, 7, 7.6, 8], rtol=1e-6)  # no offset along z
    np.testing.assert_allclose(table[:, 2], np.clip((np.arange(7) + 0.5) * 15 / 7 - 0.5, 1, 13))
    with pytest.raises(ShapeError, match=r"windows of \(7, 7\)"):
        resize_windows(params, (7, 7), (4, 3))


def test_what_is_refused():
    model = SwinUNETR(2, num_heads=(3, 6))
    with pytest.raises(ConfigError, match="num_blocks for 4 stages and num_heads for 2"):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 32, 1)))
