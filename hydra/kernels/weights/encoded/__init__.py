"""Matrices that are computed with as they are stored: codes with scales, and the products that decode them on the way.

May import: kernels.native, kernels.devices, kernels.tensors, protocol.
Refuses to know: files, and what a matrix is for.
"""
