"""`python -m hydra bench`: the budgets of the design as ratios, both sides measured in one interleaved run.

May import: everything.
Refuses to know: what a figure has to be on one particular machine.
"""
