"""What is saved and what is read back: run folders, orbax checkpoints, Hugging Face folders."""
