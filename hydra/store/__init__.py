"""Model directories, the Hub, the cache, and what a machine lends to others. Speaks files.

May import: protocol.
Refuses to know: torch, trio, zmq, and what a weight is for.
"""
