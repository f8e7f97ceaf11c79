"""Text to batches.

Reading order: batch, config, sources, tokenizers, cache, packing, order, tasks, pipeline.
"""
