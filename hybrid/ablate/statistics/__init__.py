"""What runs show, with 95 % intervals: intervals, cell_summary, token_figures, summary."""
