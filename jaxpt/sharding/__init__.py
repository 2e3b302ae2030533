"""The only mesh builder and the one table from logical axis names to mesh axes."""

from jaxpt.sharding.mesh import AXES, MeshConfig, make_mesh, platform
from jaxpt.sharding.rules import RULES, constrain, over_batch, partition_spec, shardings

__all__ = [
    "AXES",
    "RULES",
    "MeshConfig",
    "constrain",
    "make_mesh",
    "over_batch",
    "partition_spec",
    "platform",
    "shardings",
]
