"""Turn masked language models into diffusion language models, in JAX/Flax."""
