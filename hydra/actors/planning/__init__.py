"""Which models are wanted, and which node holds which layers.

May import: core, protocol.
Refuses to know: requests, rows and tokens.
"""
