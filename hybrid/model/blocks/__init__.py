"""A layer: `block.py` puts a mixer and a feed-forward into the residual stream."""
