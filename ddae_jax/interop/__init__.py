"""Weights of other libraries as parameters of this one's networks. Names and arrays only."""
