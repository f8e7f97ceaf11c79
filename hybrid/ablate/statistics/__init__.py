"""What runs show, with 95 % intervals: intervals, cell_summary, groups, token_figures, summary."""
