"""The only mesh builder, the one table from logical axis names to mesh axes, and start-up on several hosts."""

from jaxpt.sharding.distributed import initialize, local_rows
from jaxpt.sharding.mesh import AXES, MeshConfig, make_mesh, platform
from jaxpt.sharding.rules import RULES, batch_axes, constrain, over_batch, partition_spec, shardings

__all__ = [
    "AXES",
    "RULES",
    "MeshConfig",
    "batch_axes",
    "constrain",
    "initialize",
    "local_rows",
    "make_mesh",
    "over_batch",
    "partition_spec",
    "platform",
    "shardings",
]
