"""Weights: read from files, kept in memory, multiplied with.

May import: native, devices, tensors, protocol.
Refuses to know: what a layer is for.
"""
