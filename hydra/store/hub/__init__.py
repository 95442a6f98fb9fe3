"""Models at a Hub: what is there, and ranges of its files.

May import: cache, files, formats, gguf, lending, models, protocol.
Refuses to know: which slice is wanted, and by whom.
"""
