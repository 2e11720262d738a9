"""metamorph_jax: train language models that answer in text and images (VPiT), in JAX."""
