"""The sections of the configuration as values: what was read once travels whole, and is held by whoever goes by it.

May import: protocol.units.
Refuses to know: where a value was written down, and what is sensible (hydra.settings says it).
"""
