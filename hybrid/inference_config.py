"""The `inference.` section: how caches are kept, which the accounting reads."""

import dataclasses

from hybrid.config import key

CACHE_DTYPES = ("", "float32", "bfloat16", "float64", "int8")


@dataclasses.dataclass(frozen=True)
class InferenceConfig:
    """Keys under `inference.`."""

    cache_dtype: str = key(
        "",
        "dtype of cached keys and values; int8 adds a float32 scale a head and token; "
        "empty: model.dtype",
        choices=CACHE_DTYPES,
    )
