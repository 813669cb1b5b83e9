"""A file an operator, found by walking: its `SAMPLES`."""
