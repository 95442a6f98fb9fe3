"""A model, described: its config, family, names, and the place of every tensor.

May import: files, formats, gguf, protocol.
Refuses to know: how bytes travel, and what is computed.
"""
