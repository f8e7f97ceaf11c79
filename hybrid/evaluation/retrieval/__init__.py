"""Retrieval over long context: what is hidden far back in a prompt, and does the model find it?

Losses and retrieval can disagree, so both are measured. Samples are made by rule and from seeds at
any length, replies are greedy, scores are those published.

Read in order: `sample.py` (what a sample is, and how its size is found), `vocabulary.py` and
`haystack.py` (its words), `niah.py`, `variables.py`, `frequent_words.py` and `questions.py` (the
tasks), `ruler.py` (the table of all thirteen), `scores.py`; `mrcr.py` (conversations); `prompts.py`
(samples as ids), `run.py` and `sample_log.py` (replies, kept as they come); `result.py`,
`report.py` and `heat_map.py` (what comes out), `benchmark.py` (what a config asks) and `command.py`
(what `eval.py` runs).
"""
