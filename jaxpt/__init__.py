"""jaxpt: efficient pretraining in JAX, as pure functions.

Importing this package loads nothing heavy; import the room you need, for example `from jaxpt.models import decoder`.
"""

__version__ = "0.1.0"
