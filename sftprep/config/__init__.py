"""Frozen configs, one file a command; each field's description is its help text."""
