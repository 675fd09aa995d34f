"""How a step runs over devices: on one, through `jax.pmap`, or sharded over a mesh."""

from biojax.parallel.mesh import make_mesh
from biojax.parallel.strategies import Strategy, data, gather, make_strategy, pmap, single

__all__ = ["Strategy", "data", "gather", "make_mesh", "make_strategy", "pmap", "single"]
