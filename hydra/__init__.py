"""Hydra: one large language model over the unequal devices you own, behind the OpenAI API."""

__version__ = "0.1.0"
