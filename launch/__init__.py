"""Builders of job submissions."""
