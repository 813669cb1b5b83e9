"""Data for tests, training and the demonstration."""
