"""The sentence: the only place that joins edges and stages."""
