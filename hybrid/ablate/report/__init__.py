"""results.json, results.csv, the figures and report.html.

Read in order: `results.py`, `notation.py`, `view.py`, `sentences.py`, `drawing.py`, `figures.py`,
`page.py` with its template `report.html.jinja`.
"""
