"""Writes `transformers_defaults.json`: what transformers' decoder classes take for a missing key.

python tests/pretrained/make_defaults.py        (needs transformers)
"""

import dataclasses
import json
import pathlib

FILE = pathlib.Path(__file__).parent / "transformers_defaults.json"
CLASSES = {
    "gemma2": "Gemma2Config",
    "gemma3_text": "Gemma3TextConfig",
    "gemma4_text": "Gemma4TextConfig",
    "gemma4_unified_text": "Gemma4UnifiedTextConfig",
}


def installed() -> dict:
    """{model_type: {key: default}} of the installed classes' own fields."""
    import transformers

    general = {field.name for field in dataclasses.fields(transformers.PreTrainedConfig)}
    return {
        kind: {
            field.name: field.default
            for field in dataclasses.fields(getattr(transformers, name))
            if field.name not in general or field.name == "tie_word_embeddings"
        }
        for kind, name in CLASSES.items()
    }


if __name__ == "__main__":
    FILE.write_text(json.dumps(installed(), indent=1) + "\n")
