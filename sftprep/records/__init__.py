"""The wire format: what users write, one file a foreign format."""
