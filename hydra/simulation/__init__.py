"""A whole cluster in one event loop: a network in memory, virtual time, a model whose answers prove their path.

May import: actors, http, text, store, protocol.
Refuses to know: sockets, processes, torch.
"""
