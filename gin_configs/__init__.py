"""The gin files: `models/` (what), `runs/` (how), `examples/` (both, with a task)."""
