"""Attention over a row's past, and the blocks that hold it.

May import: native, devices, tensors, protocol.
Refuses to know: weights and layers.
"""
