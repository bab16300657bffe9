"""Verbs: pure functions from nouns to nouns; no stage imports another."""
