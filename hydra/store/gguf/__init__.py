"""GGUF files: their header, and the small files of a model folder that their metadata stands for.

May import: cache, files, formats, protocol.
Refuses to know: where a file comes from, and how weights are read.
"""
