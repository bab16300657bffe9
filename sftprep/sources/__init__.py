"""Edge: files in."""
