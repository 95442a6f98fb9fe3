"""A decoder put together from its weights: norms, rotary positions, blocks, the slice as a whole.

May import: attention, weights, sampling, native, devices, tensors, protocol.
Refuses to know: how a step came here, and files.
"""
