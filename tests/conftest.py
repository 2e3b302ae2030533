"""Eight CPU devices for every test, so that meshes are real, and the declared array shapes checked at every call."""

import os

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from jaxtyping import install_import_hook

# Not jaxpt.weights: its dataclasses hold specs, shapes and shardings as well as the arrays they are declared to hold.
install_import_hook(["jaxpt.layers", "jaxpt.models", "jaxpt.objectives", "pallas_kernels"], "beartype.beartype")
