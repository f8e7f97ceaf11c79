"""Text to batches. Reading order: batch, sources, tokenizers, packing, pipeline."""
