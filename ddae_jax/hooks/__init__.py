"""Hooks: what happens beside training, such as scores, warnings and the report."""
