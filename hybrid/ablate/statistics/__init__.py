"""What runs show, with 95 % intervals: cell_summary, token_figures, benchmarks, summary."""
