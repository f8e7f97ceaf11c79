"""The rotary encodings of a config.json as values of `model.*`, in each form that files have had.

    Gemma 2   one for all layers: `rope_parameters`, or `rope_theta` with `rope_scaling` before
    Gemma 3   one for each kind of layer: `rope_parameters` by kind, or before that `rope_theta`
              and `rope_scaling` of global layers, `rope_local_base_freq` of local ones
    Gemma 4   `rope_parameters` by kind alone

Forms are merged in the order in which transformers does. A key that would change an encoding in a
way that our layers don't have is refused by its place in the file.
Source: `convert_rope_params_to_dict` of transformers' config classes.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from hybrid.pretrained.fields import Fields

SLIDING, FULL = "sliding_attention", "full_attention"
# The keys that each kind of encoding reads, beside its own name and the base.
_READ = {
    "default": (),
    "linear": ("factor",),
    "proportional": ("factor", "partial_rotary_factor"),
}
_NEUTRAL = {"factor": 1, "partial_rotary_factor": 1}
_GLOBAL_KINDS = {"gemma3": ("default", "linear"), "gemma4": ("default", "proportional")}
_GEMMA_4 = {
    SLIDING: {"rope_type": "default", "rope_theta": 10_000.0},
    FULL: {"rope_type": "proportional", "rope_theta": 1e6, "partial_rotary_factor": 0.25},
}


class Encoding(NamedTuple):
    """A rotary encoding: base, fraction of the pairs that turn, divisor of the frequencies."""

    theta: float
    fraction: float
    factor: float


def rope_values(fields: Fields) -> dict[str, Any]:
    """Values of `model.rope_theta` and `model.global_rope_*`.

    Raises: ConfigError for an encoding that our layers don't have, and for keys without effect.
    """
    fraction = fields.get("partial_rotary_factor")
    if fraction not in (None, 1):
        problem = "partial_rotary_factor is not served outside rope_parameters"
        raise fields.wrong(problem, fraction)
    if fields.family == "gemma2":
        local = wide = _gemma2(fields)
    else:
        local, wide = _by_kind(fields)
    return {
        "rope_theta": local.theta,
        "global_rope_theta": wide.theta,
        "global_rope_fraction": wide.fraction,
        "global_rope_factor": wide.factor,
    }


def _gemma2(fields: Fields) -> Encoding:
    name = "rope_scaling" if fields.object("rope_scaling") else "rope_parameters"
    rope = {"rope_theta": fields.get("rope_theta"), **fields.object(name)}
    return _encoding(fields, name, rope, ("default",))


def _by_kind(fields: Fields) -> tuple[Encoding, Encoding]:
    """The encodings of local and of global layers."""
    name = "rope_parameters"
    ropes = fields.object(name)
    strange = [kind for kind in ropes if kind not in (SLIDING, FULL)]
    if strange:
        problem = f"{name}.{strange[0]} is no kind of layer"
        raise fields.wrong(problem, ropes[strange[0]], f"{SLIDING}, {FULL}")
    names = {kind: f"{name}.{kind}" for kind in (SLIDING, FULL)}
    scaling = fields.object("rope_scaling")
    if fields.family == "gemma3":
        default: dict[str, Any] = {"rope_type": "default"}
        bases = {SLIDING: fields.get("rope_local_base_freq"), FULL: fields.get("rope_theta")}
        given = {kind: _object(fields, names[kind], ropes.get(kind)) or default for kind in bases}
        merged = {kind: {"rope_theta": base, **given[kind]} for kind, base in bases.items()}
        merged[FULL] |= scaling
        names[FULL] = "rope_scaling" if scaling else names[FULL]
    elif scaling:
        raise fields.wrong("rope_scaling is not served", scaling, "rope_parameters by kind")
    else:
        given = {kind: _object(fields, names[kind], ropes.get(kind)) for kind in _GEMMA_4}
        theta = {kind: {"rope_theta": rope["rope_theta"]} for kind, rope in _GEMMA_4.items()}
        merged = {k: theta[k] | given[k] if given[k] else _GEMMA_4[k] for k in _GEMMA_4}
    local = _encoding(fields, names[SLIDING], merged[SLIDING], ("default",))
    return local, _encoding(fields, names[FULL], merged[FULL], _GLOBAL_KINDS[fields.family])


def _object(fields: Fields, name: str, value: Any) -> dict[str, Any]:
    if value is not None and not isinstance(value, dict):
        raise fields.wrong(f"{name} must be an object", value)
    return value or {}


def _encoding(
    fields: Fields, name: str, rope: Mapping[str, Any], kinds: tuple[str, ...]
) -> Encoding:
    """The encoding of an object of the file.

    Raises: ConfigError for one that is none of `kinds`, and a key that its kind does not read.
    """
    rope = {key: value for key, value in rope.items() if value is not None}
    stands_in = "rope_type" if "rope_type" in rope else "type"
    kind = rope.get(stands_in, "default")
    if kind not in kinds:
        raise fields.wrong(f"{name}.{stands_in} is not served", kind, " or ".join(kinds))
    if rope.get("type", kind) != kind:  # versions of transformers differ in which one counts
        raise fields.wrong(f"{name}.type is not rope_type ({kind})", rope["type"])
    read = ("rope_type", "type", "rope_theta", *_READ[kind])
    for key, value in rope.items():
        if key not in read and value != _NEUTRAL.get(key):
            raise fields.wrong(f"{name}.{key} has no effect under rope_type {kind}", value)
    values = {"partial_rotary_factor": 1.0} | ({"factor": 1.0} if kind != "linear" else {}) | rope

    theta, factor = (
        fields.checked_number(f"{name}.{key}", values.get(key), more_than=0.0)
        for key in ("rope_theta", "factor")
    )
    key = "partial_rotary_factor"
    return Encoding(theta, fields.checked_number(f"{name}.{key}", values[key]), factor)
