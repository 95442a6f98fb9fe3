"""Quantised checkpoints in the Hugging Face layout: what a config says of each module, and which tensors that means.

May import: store.files, store.formats, config_values, protocol.
Refuses to know: families, and how codes become numbers.
"""
