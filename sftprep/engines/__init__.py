"""Edge: tokenizers and model directories."""
