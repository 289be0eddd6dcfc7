"""Speed and memory, as ratios within one run: `python -m regvq_jax.bench NAME`."""
