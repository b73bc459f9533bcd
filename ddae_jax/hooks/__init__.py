"""Hooks: called by the training loop to measure scores, give warnings and write the report."""
