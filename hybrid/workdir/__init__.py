"""What a run leaves on disk: checkpoints, the rows of metrics.jsonl, config and provenance."""
