"""Figures and the report, drawn from arrays and records."""
