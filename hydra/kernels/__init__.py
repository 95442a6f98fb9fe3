"""What is computed. Speaks tensors.

May import: protocol.
Refuses to know: sockets, actors, words.
"""
