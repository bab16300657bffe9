"""The trainer: the only code, with evaluate, that imports torch."""
