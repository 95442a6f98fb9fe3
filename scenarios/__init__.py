"""Faults told as stories: each is written once, and played on simulated or on real processes."""
