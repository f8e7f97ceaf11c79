"""Attention by kernels in Pallas: the band is a grid whose blocks are arithmetic.

How a call is cut stands in `window.py` (windows: all keys of a block of queries at once) and
`whole.py` (everything else). Both skip what the band hides by computing block numbers, where splash
attention reads tables that its host code makes from a mask (285 s for a window at 128K tokens).
Compiled for TPUs; elsewhere the same kernels are interpreted, which is how the tests run them.

Read next: `door.py`, `differentiable.py`.
"""

LANES = 128  # of a TPU's registers: what minor axes are whole multiples of
