"""The model's own Jinja template, instrumented: who wrote each character."""
