"""What every actor is made of: the machine's shape, the host that runs it, the gateway to the wire, shared facts.

May import: protocol.
Refuses to know: any one machine.
"""
