"""What a model is in numbers: sizes, decoder, matrices and where their bytes are.

May import: the rest of protocol.
Refuses to know: files and tensors.
"""
