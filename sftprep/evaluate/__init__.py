"""Gates on what training made."""
