"""Rotary positions and the block of Primus against the packages that it is made of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from biojax.kernels import rotary, rotary_angles
from biojax.modules import TransformerBlock

torch = pytest.importorskip("torch", reason="torch is not installed")
eva = pytest.importorskip(
    "dynamic_network_architectures.building_blocks.eva", reason="its Primus is not installed"
)
layers = pytest.importorskip("timm.layers", reason="timm is not installed")

pytestmark = [
    pytest.mark.peers,
    pytest.mark.filterwarnings("ignore"),  # those of other libraries
]

GRID = (2, 3, 4)


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(("grid", "head_size"), [(GRID, 24), ((3, 5), 16), ((7,), 8)])
def test_rotary_positions(grid, head_size):
    # Theirs is told four times the number of frequencies: two thirds of the head in a volume.
    theirs = layers.RotaryEmbeddingCat(
        2 * head_size // len(grid),
        in_pixels=False,
        feat_shape=list(grid),
        ref_feat_shape=list(grid),
    ).get_embed()
    angles = rotary_angles(grid, head_size)
    sin, cos = np.split(theirs.numpy(), 2, axis=-1)
    np.testing.assert_allclose(np.repeat(np.sin(angles), 2, axis=1), sin, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(np.repeat(np.cos(angles), 2, axis=1), cos, rtol=1e-5, atol=1e-6)
    x = random(2, len(angles), 3, head_size)
    turned = layers.apply_rot_embed_cat(torch.from_numpy(x).transpose(1, 2), theirs)
    expected = turned.transpose(1, 2).numpy()
    np.testing.assert_allclose(rotary(jnp.asarray(x), angles), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("layer_scale", "norm"), [(None, False), (0.1, True)])
def test_the_block_of_primus(layer_scale, norm, with_parameters):
    net = eva.Eva(
        embed_dim=24, depth=1, num_heads=2, ref_feat_shape=GRID, init_values=layer_scale,
        num_reg_tokens=1, scale_attn_inner=norm,
    ).eval()  # fmt: skip
    block, rope = net.blocks[0], net.rope.get_embed()
    x = random(2, 25, 24)
    module = TransformerBlock(
        2,
        8 / 3,
        "swiglu",
        mlp_norm=True,
        attention_norm=norm,
        key_bias=False,
        layer_scale=layer_scale,
        epsilon=1e-5,
    )
    angles = rotary_angles(GRID, 12, num_prefix=1)
    variables = with_parameters(module, jnp.asarray(x))
    names = {
        "attention/query": block.attn.q_proj, "attention/key": block.attn.k_proj,
        "attention/value": block.attn.v_proj, "attention/proj": block.attn.proj,
        "attention/norm": block.attn.norm,
        "mlp/gate": block.mlp.fc1_g, "mlp/expand": block.mlp.fc1_x, "mlp/norm": block.mlp.norm,
        "mlp/project": block.mlp.fc2, "norm1": block.norm1, "norm2": block.norm2,
    }  # fmt: skip

    def copy(path, leaf):
        *owner, name = (step.key for step in path[1:])
        if owner[0].startswith("scale"):
            target = getattr(block, f"gamma_{owner[0][-1]}")
        else:
            target = getattr(names["/".join(owner)], "bias" if name == "bias" else "weight")
        target.copy_(torch.from_numpy(np.asarray(leaf).T.copy()))

    with torch.no_grad():
        jax.tree_util.tree_map_with_path(copy, variables)
        expected = block(torch.from_numpy(x), rope=rope).numpy()
    leaves = sum(leaf.size for leaf in jax.tree.leaves(variables))
    assert leaves == sum(p.numel() for p in block.parameters())
    y = module.apply(variables, x, angles=angles)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)
