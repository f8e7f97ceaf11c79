"""Scoring a trained model: perplexity of text, accuracy on tasks.

Read in order: `result.py` and `scores.py` (what comes out), `windows.py` (what is scored, pure
planning), `perplexity.py` and `repeats.py` (text), `recall.py` (tasks), `held_out.py` (the one
entry), `report.py` (the table), `command.py` (what `eval.py` runs).
"""
