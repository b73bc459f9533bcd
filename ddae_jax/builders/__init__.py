"""Objects that a config describes: networks, methods, data, optimizers, a run's beginning."""
