"""clipdg_jax: CLIP and the question of domains, from web pool to robust fine-tuning, in JAX."""

__version__ = "0.1.0"
