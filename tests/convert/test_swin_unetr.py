"""Swin UNETR against MONAI's, with random weights."""

import jax
import numpy as np
import pytest

from biojax.convert import convert_state_dict
from biojax.models import SwinUNETR

torch = pytest.importorskip("torch", reason="torch is not installed")
swin = pytest.importorskip("monai.networks.nets.swin_unetr", reason="monai is not installed")

pytestmark = [
    pytest.mark.peers,
    pytest.mark.filterwarnings("ignore"),  # those of other libraries
]

SMALL = {"depths": (2, 1, 1, 2), "num_heads": (1, 2, 3, 4), "feature_size": 12}


class Axes(swin.PatchMergingV2):
    """MONAI's "merging" from 1.6 on."""

    corners = ["000", "100", "010", "001", "110", "101", "011", "111"]  # noqa: RUF012

    def forward(self, x):
        slices = [[slice(int(start), None, 2) for start in corner] for corner in self.corners]
        x = torch.cat([x[:, z, y, x_] for z, y, x_ in slices], -1)
        return self.reduction(self.norm(x))


class Repeated(Axes):
    """MONAI's "merging" up to 1.5."""

    corners = ["000", "100", "010", "001", "101", "010", "001", "111"]  # noqa: RUF012


MERGING = {"axes": Axes, "raster": "mergingv2", "repeated": Repeated}


def random_net(spatial_dims: int, merging: str, use_v2: bool):
    downsample = MERGING[merging] if spatial_dims == 3 else "merging"
    net = swin.SwinUNETR(
        2, 3, spatial_dims=spatial_dims, downsample=downsample, use_v2=use_v2, **SMALL
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in net.parameters():
            fan_in = value[0].numel() if value.ndim > 1 else 4
            value.copy_(torch.randn(value.shape, generator=generator) / fan_in**0.5)
    return net.eval()


@pytest.mark.parametrize(
    ("spatial_dims", "merging", "use_v2"),
    [(3, "axes", False), (3, "raster", True), (3, "repeated", False), (2, "axes", True)],
)
def test_converted_weights_give_the_same_logits(spatial_dims, merging, use_v2):
    """Stages of 32 to 4 voxels: shifted windows of 7, padded ones, and smaller ones."""
    net = random_net(spatial_dims, merging, use_v2)
    size = (64, 32, 32) if spatial_dims == 3 else (64, 96)
    x = np.random.default_rng(0).standard_normal((1, *size, 2)).astype(np.float32)
    with torch.no_grad():
        expected = net(torch.from_numpy(np.moveaxis(x, -1, 1).copy())).numpy()
    expected = np.moveaxis(expected, 1, -1)
    model = SwinUNETR(
        3, spatial_dims, 12, SMALL["depths"], SMALL["num_heads"], merging=merging,
        stage_convs=use_v2,
    )  # fmt: skip
    state = {name: value.numpy() for name, value in net.state_dict().items()}
    variables = convert_state_dict(state, model)
    y = jax.jit(model.apply)(variables, x)
    assert np.linalg.norm(y - expected) < 1e-4 * np.linalg.norm(expected)


def test_the_installed_merging_has_one_of_the_orders():
    merging = swin.PatchMerging(1)
    merging.norm = merging.reduction = torch.nn.Identity()
    seen = merging(torch.arange(8.0).reshape(1, 2, 2, 2, 1)).flatten().tolist()
    assert seen in [[int(corner, 2) for corner in order.corners] for order in (Axes, Repeated)]
