"""Scoring a trained model: perplexity now, retrieval tasks beside it later.

Read in order: `windows.py` (what is scored, pure planning), `perplexity.py` (the scores),
`report.py` (the table), `command.py` (what `eval.py` runs).
"""
