"""Scoring a trained model: perplexity of text, accuracy on tasks.

Read in order: `result.py` and `token_records.py` (what comes out), `windows.py` (which tokens are
scored in which window, without jax), `batches.py` (batches through the model), `perplexity.py` and
`repeats.py` (text), `recall.py` (tasks), `held_out.py` (the one entry), `report.py` (the table),
`target.py` and `command.py` (what `eval.py` runs), `long_perplexity.py` (a second model as judge),
`retrieval/` (replies to prompts). `intervals.py` and `drawing.py` serve sweeps as well.
"""
