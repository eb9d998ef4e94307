"""Ahead-of-time compilation for hardware that is not there: fit, roofline, search."""
