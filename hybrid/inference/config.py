"""The `inference.` section: how caches are kept and prompts are read."""

import dataclasses

from hybrid.config import key

CACHE_DTYPES = ("", "float32", "bfloat16", "float64", "int8")
UNIFIED_CACHES = ("value", "value_and_rotated", "keys_and_values")
LAYERS = ("auto", "scan", "loop")


@dataclasses.dataclass(frozen=True)
class InferenceConfig:
    """Keys under `inference.`."""

    cache_dtype: str = key(
        "",
        "dtype of cached keys and values; int8 adds a bfloat16 scale a head and token; "
        "empty: model.dtype",
        choices=CACHE_DTYPES,
    )
    unified_cache: str = key(
        "value",
        "what layers with unified keys and values keep: the value alone (keys are made on "
        "reading), the value and the rotated part of the key (more bytes, less work), or both",
        choices=UNIFIED_CACHES,
    )
    slack: int = key(
        0, "tokens that a cache can be rewound by: local rings hold as many more", at_least=0
    )
    prefill_chunk: int = key(512, "tokens of a prompt that are read at a time", at_least=1)
    layers: str = key(
        "auto",
        "scan: one program for all repetitions of a period; loop: every layer by itself, which "
        "copies stacked parameters once and is 3 times as fast on a CPU; auto: loop on CPUs",
        choices=LAYERS,
    )
