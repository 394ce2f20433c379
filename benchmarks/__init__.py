"""Measurements: each prints the table that goes to docs/ and can write it as JSON."""
