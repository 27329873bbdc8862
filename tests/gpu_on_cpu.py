"""A plugin of pytest: what would serve on a GPU serves on the CPU, as ``chooser`` decides.

``python -m pytest -p tests.gpu_on_cpu tests/clnp_kernels/ops`` with ``CLNP_GPU=torch`` runs the
operators' tests on the slices; the Triton kernels need ``TRITON_INTERPRET=1``.
"""

from clnp_kernels import _register

_register.LIBRARIES["cpu"] = ("CPU", "reference", "_cpu_missing*.so")

from clnp_kernels import ops  # noqa: E402, F401  (registers the operators)

for _name in _register.OPS:
    _register._library.impl(_name, _register._cuda_server(_name), "CPU")
