"""What a model costs, as folds over its `LayerPlan`: parameters, FLOPs and cache bytes.

Nothing here runs or compiles the model. A matrix product of [m, k] and [k, n] is 2·m·k·n FLOPs;
everything else (norms, softmax, rotations, the embedding lookup) counts as nothing, which is
where the work is on accelerators. Tests hold the counts against the compiled program
(`hlo.py`) and against the built parameters.

Symbols: d = d_model, f = ffn_dim, v = vocab_size, e experts, p = layer_embedding_dim, n, k, h the
heads of a layer, T the context.
"""

import math

import jax

from hybrid import model
from hybrid.model.config import ModelConfig
from hybrid.model.mixers.protocol import CacheFormat
from hybrid.model.params import flat
from hybrid.model.pattern import LayerPlan, LayerSpec

# --- Parameters ------------------------------------------------------------------------------


def num_params(config: ModelConfig) -> int:
    """Parameters of the model as built, tied embedding counted once."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(model.abstract(config)))


def num_active_params(config: ModelConfig) -> int:
    """Parameters without the experts that a token is not sent to."""
    idle = 0
    for spec in model.layer_plan(config).layers():
        if spec.experts:
            idle += (spec.experts.num - spec.experts.active) * 3 * config.d_model * spec.experts.dim
    return num_params(config) - idle


def num_params_by_part(config: ModelConfig) -> dict[str, int]:
    """Parameters of embeddings, attention by kind, feed-forwards, experts, norms and scalars."""
    parts: dict[str, int] = {}
    for path, leaf in flat(model.abstract(config)).items():
        part = _part(model.layer_plan(config), path)
        parts[part] = parts.get(part, 0) + math.prod(leaf.shape)
    return parts


def _part(plan: LayerPlan, path: tuple) -> str:
    if path[0] == "embedder":
        return "embedding"
    if "layer_embedding" in path and path[-1] in ("embedding", "kernel"):
        return "layer embeddings"
    if "experts" in path and path[-1] != "scale":
        return "experts"
    if path[0] == "segments" and "kernel" in path:
        spec = plan.segments[path[1]].runs[path[2]].spec
        return spec.about.title if path[3] == "mixer" else "feed-forward"
    return "norms and scalars"


# --- FLOPs -----------------------------------------------------------------------------------


def forward_flops_per_token(config: ModelConfig, context: int) -> float:
    """FLOPs of the matrix products of one forward pass, averaged over positions 0 … context-1.

    The head is included, the embedding lookup is not; a token's attention counts exactly the keys
    it may see. A training step costs three times as much (recomputation aside).
    """
    specs = model.layer_plan(config).layers()
    layers = sum(sum(layer_flops(config, spec, context).values()) for spec in specs)
    return layers + head_flops_per_token(config)


def layer_flops(config: ModelConfig, spec: LayerSpec, context: int) -> dict[str, float]:
    """The same of one layer by part: all of its products."""
    projections, mixing = spec.mixer.flops_per_token(config, context)
    parts = {"projections": projections, spec.about.title: mixing}
    parts["feed-forward"] = 6 * config.d_model * spec.ffn_dim  # 2·3·d·f: gate, up and down
    if experts := spec.experts:  # 2·d·e for the router's logits, 2·3·d·dim for each active one
        parts["experts"] = 2 * config.d_model * (experts.num + 3 * experts.active * experts.dim)
    if config.layer_embedding_dim:  # 2·3·d·p: context, gate and output
        parts["layer embeddings"] = 6 * config.d_model * config.layer_embedding_dim
    return parts


def head_flops_per_token(config: ModelConfig) -> int:
    """2·d·v."""
    return 2 * config.d_model * config.vocab_size


# --- Caches ----------------------------------------------------------------------------------


def cache_bytes(plan: LayerPlan, form: CacheFormat, batch: int) -> dict[str, int]:
    """Bytes of the caches of `batch` rows of `form.capacity` tokens, by kind, and their total.

    `state` is that of recurrent mixers.
    """
    sizes = {"total": 0, "local": 0, "global": 0, "state": 0}
    for spec in plan.layers():
        size = batch * spec.mixer.state_bytes(form)
        sizes[spec.kind] += size
        sizes["total"] += size
    return sizes


def cache_bytes_all_global(plan: LayerPlan, form: CacheFormat, batch: int) -> int:
    """The same if every layer kept keys and values apart for the whole context, none shared."""
    return batch * sum(spec.mixer.state_bytes_all_global(form) for spec in plan.layers())
