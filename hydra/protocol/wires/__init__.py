"""The lanes between processes: the contract of every transport, and ZeroMQ's. The only importer of zmq.

May import: the rest of protocol.
Refuses to know: what a message means.
"""
