"""Which rows are computed when, and where their KV blocks lie.

May import: core, protocol.
Refuses to know: why a route is as it is, and what becomes of a token at the client.
"""
