"""Who is alive, who may enter, and who can be reached.

May import: core, protocol.
Refuses to know: models, routes and sessions.
"""
