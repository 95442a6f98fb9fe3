"""One worker's part of a route: loading a slice, and the thread that computes its steps.

May import: core, protocol.
Refuses to know: other stages, and what a tensor is.
"""
