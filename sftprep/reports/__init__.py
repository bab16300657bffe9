"""Edge: what people and machines are shown."""
