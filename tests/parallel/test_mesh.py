import jax
import pytest
from jax.sharding import AxisType

from biojax.errors import ConfigError
from biojax.parallel import make_mesh


def test_mesh_holds_the_devices_in_order():
    mesh = make_mesh()
    assert mesh.shape == {"data": 8}
    assert set(mesh.devices.flat) == set(jax.devices())
    assert mesh.axis_types == (AxisType.Auto,)
    assert list(make_mesh(2, axis="fsdp").devices.flat) == jax.devices()[:2]
    assert list(make_mesh(jax.devices()[3:5]).devices.flat) == jax.devices()[3:5]


def test_devices_that_are_not_there():
    with pytest.raises(ConfigError, match=r"devices=9. Expected 1 to 8.*mean devices=8"):
        make_mesh(9)
    with pytest.raises(ConfigError, match="devices=0"):
        make_mesh(0)
    with pytest.raises(ConfigError, match="no devices"):
        make_mesh([])
