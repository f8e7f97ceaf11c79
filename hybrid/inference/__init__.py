"""Inference: prompts in chunks, decoding on the device, scores through the cache.

Read `session.py` first (prefill, decode), then `sampling.py` and `scoring.py`.
"""
