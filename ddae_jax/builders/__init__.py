"""Builders: make the networks, methods, data and optimizers that a config describes."""
