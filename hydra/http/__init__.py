"""The face: how Hydra speaks to people. Words stop here; behind it there are only token ids."""
