"""From logits to tokens.

May import: tensors, protocol.
Refuses to know: how logits came to be.
"""
