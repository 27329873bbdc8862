"""The operators by PyTorch's own kernels on slices: what serves on CUDA where it wins.

cuBLAS and cuDNN products on contiguous slices, written straight into the slices of the output where
PyTorch can. They run on any device; the CPU has faster ones.
"""
