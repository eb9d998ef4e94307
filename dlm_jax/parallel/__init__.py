"""Meshes, logical-axis rules, accelerators, and the host's memory."""
