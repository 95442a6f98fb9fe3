"""Each generation from its first token to its last, whatever happens to the route under it.

May import: core, client, protocol.
Refuses to know: routes, stages and rows.
"""
