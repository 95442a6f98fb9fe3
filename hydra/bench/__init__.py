"""`python -m hydra bench`: the budgets of the design as ratios, both sides measured in one interleaved run."""
