"""The operators by PyTorch's own kernels on slices, for CUDA where these are fastest.

cuBLAS and cuDNN products on contiguous slices, written straight into the slices of the output where
PyTorch can. They run on any device; the CPU has faster ones.
"""
