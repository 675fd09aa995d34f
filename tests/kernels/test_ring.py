"""Ring attention: on eight devices the same as on one, in memory that falls with their number."""

from functools import partial
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from biojax.errors import ConfigError, ShapeError
from biojax.kernels import attention, ring_attention
from biojax.kernels.attention import blocked
from biojax.kernels.attention.zigzag import from_zigzag, to_zigzag

TOKENS = P(None, "a")


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def tokens(t=32, s=32, n=4, m=2) -> list[np.ndarray]:
    """A query, a key and a value."""
    return [normal(0, 3, t, n, 3), normal(1, 3, s, m, 3), normal(2, 3, s, m, 4)]


def over(mesh, spec=TOKENS, of_keys=(), **options):
    """Ring attention of whole arrays; `of_keys` has the spec of a mask, and that of lengths."""
    names = ("mask", "key_lengths")[: len(of_keys)]

    def run(query, key, value, *hidden):
        hidden = dict(zip(names, hidden, strict=True))
        return ring_attention(query, key, value, axis_name=spec[1], **hidden, **options)

    return jax.shard_map(run, mesh=mesh, in_specs=(spec,) * 3 + of_keys, out_specs=spec)


def with_gradients(attend):
    def run(query, key, value, *hidden):
        y, pull = jax.vjp(lambda *args: attend(*args, *hidden), query, key, value)
        return y, *pull(jnp.cos(jnp.arange(y.size)).reshape(y.shape).astype(y.dtype))

    return run


def close(got, want, rtol=2e-5):
    for g, w in zip(got, want, strict=True):
        w = np.asarray(w, np.float32)
        np.testing.assert_allclose(np.asarray(g, np.float32), w, rtol, rtol * np.abs(w).max())


@pytest.mark.parametrize(
    ("t", "options"),
    [(32, {"is_causal": True}), (16, {"scale": 0.7, "soft_cap": 2.0}), (32, {})],
    ids=["causal", "cross_capped", "self"],
)
def test_as_on_one_device(mesh_of, compiled, t, options):
    """With keys that are hidden: in one image all, and the first ones from causal queries."""
    hidden = np.random.default_rng(3).random((3, 1, 1, 32)) > 0.2, np.array([32, 13, 0])
    hidden[0][..., :5] = False
    of_keys = P(None, None, None, "a"), P()
    ring = with_gradients(over(mesh_of(8), of_keys=of_keys, **options))

    def whole(query, key, value, mask, lengths):
        return attention(query, key, value, None, mask, key_lengths=lengths, **options)

    got, collectives = compiled(ring, *tokens(t), *hidden)
    want, _ = compiled(with_gradients(whole), *tokens(t), *hidden)
    assert collectives == {"collective-permute"}
    close(got, want)
    assert not any(x[2].any() for x in got)


@pytest.mark.parametrize("causal", [False, True])
def test_bfloat16(mesh_of, compiled, causal):
    """As near to what float32 gives as one rounding allows, and another for each part of it."""
    half = [jnp.asarray(x, jnp.bfloat16) for x in tokens()]
    got, _ = compiled(with_gradients(over(mesh_of(8), is_causal=causal)), *half)
    whole = with_gradients(partial(attention, is_causal=causal))
    want, _ = compiled(whole, *(x.astype(jnp.float32) for x in half))
    assert {x.dtype for x in got} == {jnp.dtype(jnp.bfloat16)}
    close(got, want, rtol=2**-7)


def test_beside_a_batch_that_is_spread(mesh_of, quickly):
    """Over axes whose types say how arrays are split, under vmap and checkpoint."""
    mesh = mesh_of(2, 4, kind=AxisType.Explicit)
    ring = over(mesh, P("a", "b"), is_causal=True)
    place = NamedSharding(mesh, P(None, "a", "b"))
    arrays = [x[:2] for x in tokens()]
    stacked = [jax.device_put(np.stack([x, x / 2]), place) for x in arrays]
    got = jax.jit(jax.vmap(jax.checkpoint(ring)), compiler_options=quickly)(*stacked)
    for y, factor in zip(got, (1, 0.5), strict=True):
        close([y], [attention(*(factor * x for x in arrays), is_causal=True)])


def test_zigzag(mesh_of, compiled):
    """Device i has parts i and 15 - i; back where they were."""
    over = partial(jax.shard_map, mesh=mesh_of(8), out_specs=TOKENS)
    (dealt, back), collectives = compiled(
        over(lambda x: (y := to_zigzag(x, "a"), from_zigzag(y, "a")), in_specs=TOKENS),
        np.arange(16)[None, :, None],
    )
    assert dealt.ravel().tolist() == [part for i in range(8) for part in (i, 15 - i)]
    assert back.ravel().tolist() == list(range(16))
    assert collectives == {"collective-permute"}


def test_causal_work_is_even(mesh_of):
    """Of its own keys a device sees what comes before; of others' as many scores in either case."""
    with mock.patch.object(blocked, "forward", wraps=blocked.forward) as forward:
        jax.eval_shape(over(mesh_of(8), is_causal=True), *tokens(64, 64))
    calls = [call.args for call in forward.call_args_list]
    sizes = [(o.is_causal, x.query.shape[1], x.key.shape[1]) for o, x in calls]
    assert set(sizes) == {(False, 4, 8), (False, 8, 4), (True, 8, 8)}


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_keys_are_sent_to_every_other_device_once(devices):
    """Key and value: before the loop, and in each of its devices - 2 steps."""
    mesh = jax.make_mesh((devices,), ("a",), (AxisType.Auto,), devices=jax.devices()[:devices])
    text = str(jax.make_jaxpr(over(mesh))(*tokens()))
    assert text.count(" ppermute[") == (0 if devices == 1 else 4)
    assert devices == 1 or f"length={devices - 2}\n" in text


def test_memory_falls_with_the_number_of_devices(quickly):
    """As one over it; with gradients."""
    arrays = [jax.ShapeDtypeStruct((1, 2**17, 4, 32), jnp.float32)] * 3

    def bytes_on(devices: int) -> int:
        mesh = jax.make_mesh((devices,), ("a",), (AxisType.Auto,), devices=jax.devices()[:devices])
        program = jax.jit(with_gradients(over(mesh))).lower(*arrays).compile(quickly)
        found = program.memory_analysis()
        assert found is not None
        sizes = found.argument_size_in_bytes, found.output_size_in_bytes, found.temp_size_in_bytes
        return sum(sizes)

    alone, two, four, eight = (devices * bytes_on(devices) for devices in (1, 2, 4, 8))
    assert alone < 12 * 2**17 * 4 * 32 * 4
    # What goes round is there twice, for it is sent on while it is at work; between two it is not.
    assert eight < 1.9 * alone
    assert two < four < 1.05 * eight < 1.1 * four


@pytest.mark.parametrize(
    ("shapes", "options", "message"),
    [
        ((8, 16), {"is_causal": True}, "1 queries and 2 keys on each device, is_causal=True"),
        ((24, 24), {"is_causal": True}, "3 queries and 3 keys.*an even number.*key_lengths"),
        ((8, 8), {"scale": 1.0, "mask": np.ones((8, 8), bool)}, r"mask.*\(b, 1, 1, s\) = \(3, 1"),
        ((8, 8), {"key_lengths": [1, 1]}, r"whole numbers of shape \(3,\)"),
        ((8, 8), {"scale": np.ones(4)}, r"scale of float64 and shape \(4,\)"),
    ],
)
def test_what_is_refused(mesh_of, shapes, options, message):
    with pytest.raises(ShapeError, match=rf"^ring_attention: got .*?{message}"):
        jax.eval_shape(over(mesh_of(8), **options), *tokens(*shapes))


def test_a_cap_is_positive(mesh_of):
    with pytest.raises(ConfigError, match=r"^ring_attention: got soft_cap=0\."):
        jax.eval_shape(over(mesh_of(8), soft_cap=0), *tokens())


def test_a_scale_may_be_computed_and_nothing_be_given(mesh_of):
    """Values as with queries that were scaled before; of no images or queries, nothing."""

    def gradient(scale, *arrays):
        return jax.grad(lambda scale: over(mesh_of(8), scale=scale)(*arrays).sum())(scale)

    assert jax.eval_shape(gradient, 1.0, *tokens()).shape == ()
    query, key, value = tokens()
    ring = over(mesh_of(8), key_lengths=[1, 2, 3])
    assert ring(query[:, :0], key, value).shape == (3, 0, 4, 4)
    assert over(mesh_of(8))(query[:0], key[:0], value[:0]).shape == (0, 32, 4, 4)


def test_an_axis_has_to_be_there(mesh_of):
    with pytest.raises(ConfigError, match=r"^ring_attention: got axis_name='a'.*jax.shard_map"):
        ring_attention(*tokens(), axis_name="a")
