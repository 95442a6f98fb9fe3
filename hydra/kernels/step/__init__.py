"""A step on a device: copies in, a slice's work, copies out; and the runner that a stage gives orders to.

May import: all other parts of kernels, protocol.
Refuses to know: sockets and threads of a stage.
"""
