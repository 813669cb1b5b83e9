"""Measuring what the models compute."""
