"""Encoded matrices on CUDA devices: products that decode on the way, and pieces decoded as a whole, in Triton.

May import: encoded_matrix, kernels.devices, protocol.
Refuses to know: files, layers, and what else a device could multiply by.
"""
