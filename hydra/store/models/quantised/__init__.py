"""Quantised checkpoints in the Hugging Face layout: what a config says of each module, and which tensors that means.

May import: the rest of store.models, store.files, store.formats, protocol.
Refuses to know: families, and how codes become numbers.
"""
