"""What a model costs: counted from its plan (`model_costs.py`), or in a program (`hlo.py`)."""
