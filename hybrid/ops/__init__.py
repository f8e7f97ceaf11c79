"""Pure functions on arrays: no Flax, no configs. Start with `band.py`, then `attention/`."""
