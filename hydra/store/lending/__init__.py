"""Chunks of described files, handed to other machines and taken from them.

May import: cache, files, protocol.
Refuses to know: sockets, and why somebody asks.
"""
