"""Matrix products with structured weights, one folder per operation.

Each folder holds a reference that reads like the equation, the XLA version, the Pallas kernels that compute it with their
own derivatives, and one public function whose `implementation` chooses between them:

    y = sparse_low_rank(x, b, a, v, support, implementation="auto")
    print(explain("sparse_low_rank", x, b, a, v, support))         # which one was chosen, and why

python -m pallas_kernels.bench times them on an accelerator, python -m pallas_kernels.aot compiles them for one elsewhere.
"""

from pallas_kernels.common.dispatch import explain

__all__ = ["explain"]
