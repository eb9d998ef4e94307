"""The gin files: `models/` (what), `runs/` (how), `examples/` (a model, a run and a task put together)."""
