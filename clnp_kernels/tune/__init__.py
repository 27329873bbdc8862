"""Self-qualification of the GPU kernels: `python -m clnp_kernels.tune`, or `clnp tune`.

Kernels serve on a GPU once they have been checked on it. `first_use` runs the check and makes the
table that `chooser` follows; `__main__` also measures. All of it runs in processes of its own
(`supervise`, `worker`), so a kernel that crashes or hangs is a row in the table.
"""
