"""Task families: each module registers its tasks when it is imported."""
