"""The one table between our parameters and the tensors of a Hugging Face file.

A `StoredTensor` gives a tensor of ours, the file's name for it, and how the file lays it out.
Reader, writer and tests use it; no other file contains a name of a file's tensor.

    ours, of one layer          mixer/q_proj/kernel        [d, n, h]
    file                        layers.N.self_attn.q_proj.weight        [n·h, d]

Linear layers stand transposed in files, [out, in]; heads are flattened there. Two of ours can be
parts of one tensor: gate and up of experts, and the per-layer embeddings of all layers.
Source: transformers 5.23, models gemma2, gemma3, gemma4.
"""

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np

from hybrid import model
from hybrid.model.config import ModelConfig
from hybrid.model.params import Path, flat, param_name

# Before the decoder's names: in files of text models, of multimodal ones as they are saved now and
# were before, and of both without a head.
PREFIXES = ("model.", "model.language_model.", "language_model.model.", "language_model.", "")
IGNORED = (
    "vision_tower.",
    "vision_embedder.",
    "audio_tower.",
    "embed_vision.",
    "embed_audio.",
    "multi_modal_projector.",
)


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a file lays out one of our tensors.

    Attributes:
      to_file: our array of one layer -> the file's (or its part of it).
      to_ours: the file's array (or part) and our shape -> ours.
    """

    to_file: Callable[[np.ndarray], np.ndarray]
    to_ours: Callable[[np.ndarray, tuple[int, ...]], np.ndarray]


def _transposed(file: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return file.T.reshape(shape)


AS_IS = Layout(lambda ours: ours, np.reshape)
SCALAR = Layout(lambda ours: ours.reshape(1), np.reshape)
# One input axis, [d, ...out] <-> [out, d], and one output axis, [...in, d] <-> [d, in].
INPUT_FIRST = Layout(lambda ours: ours.reshape(ours.shape[0], -1).T, _transposed)
OUTPUT_LAST = Layout(lambda ours: ours.reshape(-1, ours.shape[-1]).T, _transposed)
# Matrices of experts: [e, in, out] <-> [e, out, in].
EXPERTS = Layout(lambda ours: ours.swapaxes(1, 2), lambda file, shape: file.swapaxes(1, 2))


@dataclasses.dataclass(frozen=True)
class Part:
    """A stretch of one axis of the file's tensor: `index` of `count` equal ones."""

    axis: int
    index: int
    count: int

    def of(self, shape: tuple[int, ...]) -> tuple[slice, ...]:
        """The stretch as an index into an array of `shape`."""
        size = shape[self.axis] // self.count
        return (*(slice(None),) * self.axis, slice(self.index * size, (self.index + 1) * size))


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """A tensor of ours, of one layer, and where a file stores it.

    Attributes:
      path: of the leaf, ("segments", 0, 2, "mixer", "q_proj", "kernel").
      repetition: its row in the stacked leaf; None outside the layers.
      shape: of ours, without the stacked axis.
      name: the file's, without the prefix.
      layout: how the file lays it out.
      part: which part of the file's tensor it is; None: all of it.
    """

    path: Path
    repetition: int | None
    shape: tuple[int, ...]
    name: str
    layout: Layout
    part: Part | None = None

    @property
    def file_shape(self) -> tuple[int, ...]:
        """The shape of the file's tensor."""
        laid_out = self.layout.to_file(np.broadcast_to(np.zeros((), np.int8), self.shape)).shape
        if self.part is None:
            return laid_out
        axis = self.part.axis
        return (*laid_out[:axis], laid_out[axis] * self.part.count, *laid_out[axis + 1 :])


_LAYER = {
    "pre_mixer_norm/scale": ("input_layernorm.weight", AS_IS),
    "post_mixer_norm/scale": ("post_attention_layernorm.weight", AS_IS),
    "pre_ffn_norm/scale": ("pre_feedforward_layernorm.weight", AS_IS),
    "post_ffn_norm/scale": ("post_feedforward_layernorm.weight", AS_IS),
    "layer_scalar": ("layer_scalar", SCALAR),
    "mixer/q_proj/kernel": ("self_attn.q_proj.weight", INPUT_FIRST),
    "mixer/k_proj/kernel": ("self_attn.k_proj.weight", INPUT_FIRST),
    "mixer/v_proj/kernel": ("self_attn.v_proj.weight", INPUT_FIRST),
    "mixer/o_proj/kernel": ("self_attn.o_proj.weight", OUTPUT_LAST),
    "mixer/q_norm/scale": ("self_attn.q_norm.weight", AS_IS),
    "mixer/k_norm/scale": ("self_attn.k_norm.weight", AS_IS),
    "feed_forward/gate_proj/kernel": ("mlp.gate_proj.weight", INPUT_FIRST),
    "feed_forward/up_proj/kernel": ("mlp.up_proj.weight", INPUT_FIRST),
    "feed_forward/down_proj/kernel": ("mlp.down_proj.weight", INPUT_FIRST),
    "layer_embedding/context_proj/kernel": ("per_layer_model_projection.weight", INPUT_FIRST),
    "layer_embedding/embedding": ("embed_tokens_per_layer.weight", AS_IS),
    "layer_embedding/gate_proj/kernel": ("per_layer_input_gate.weight", INPUT_FIRST),
    "layer_embedding/out_proj/kernel": ("per_layer_projection.weight", INPUT_FIRST),
    "layer_embedding/post_norm/scale": ("post_per_layer_input_norm.weight", AS_IS),
    "post_dense_norm/scale": ("post_feedforward_layernorm_1.weight", AS_IS),
    "experts/pre_norm/scale": ("pre_feedforward_layernorm_2.weight", AS_IS),
    "experts/post_norm/scale": ("post_feedforward_layernorm_2.weight", AS_IS),
    "experts/router/kernel": ("router.proj.weight", INPUT_FIRST),
    "experts/router/scale": ("router.scale", AS_IS),
    "experts/router/expert_scale": ("router.per_expert_scale", AS_IS),
    "experts/gate_proj/kernel": ("experts.gate_up_proj", EXPERTS),
    "experts/up_proj/kernel": ("experts.gate_up_proj", EXPERTS),
    "experts/down_proj/kernel": ("experts.down_proj", EXPERTS),
}
_HALVES = {"experts/gate_proj/kernel": Part(1, 0, 2), "experts/up_proj/kernel": Part(1, 1, 2)}
# Tensors that hold a part for each layer, and along which axis.
_OF_ALL_LAYERS = {"layer_embedding/embedding": 1, "layer_embedding/context_proj/kernel": 0}
_OUTSIDE = {
    ("embedder", "embedding"): ("embed_tokens.weight", AS_IS),
    ("final_norm", "scale"): ("norm.weight", AS_IS),
    ("layer_embedder", "norm", "scale"): ("per_layer_projection_norm.weight", AS_IS),
}
# A tied head may be in a file too, as a second copy of the embedding.
EMBEDDING = "embed_tokens.weight"
HEADS = ("lm_head.weight", "language_model.lm_head.weight", "model.lm_head.weight")
# Google's E2B and E4B files carry these also on layers that reuse keys and values.
_REDUNDANT = ("self_attn.k_proj.weight", "self_attn.v_proj.weight", "self_attn.k_norm.weight")


def stored_tensors(config: ModelConfig, prefix: str = "") -> dict[str, list[StoredTensor]]:
    """The tensors of a file by `prefix` and name, and which of ours each of them stores.

    Raises: KeyError for a parameter that no file has a name for.
    """
    groups: dict[str, list[StoredTensor]] = {}
    for tensor in _tensors(config):
        groups.setdefault(prefix + tensor.name, []).append(tensor)
    return groups


def _tensors(config: ModelConfig) -> Iterator[StoredTensor]:
    """Every tensor of the model, what is outside the layers first, then layer by layer."""
    plan, params = model.layer_plan(config), model.abstract(config)
    leaves = flat(params)
    for path, (name, layout) in _OUTSIDE.items():
        if path in leaves:
            yield StoredTensor(path, None, leaves[path].shape, name, layout)
    for layer in range(plan.num_layers):
        place = plan.locate(layer)
        for inside, leaf in flat(params["segments"][place.segment][place.run]).items():
            ours = param_name(inside)
            name, layout = _LAYER[ours]
            if ours in _OF_ALL_LAYERS:
                part: Part | None = Part(_OF_ALL_LAYERS[ours], layer, plan.num_layers)
            else:
                name, part = f"layers.{layer}.{name}", _HALVES.get(ours)
            full: Path = ("segments", place.segment, place.run, *inside)
            yield StoredTensor(full, place.row, leaf.shape[1:], name, layout, part)


def redundant(config: ModelConfig) -> set[str]:
    """Names that a file may have without need: keys and values of layers that reuse others'."""
    return {
        f"layers.{layer}.{name}"
        for layer, spec in enumerate(model.layer_plan(config).layers())
        if spec.mixer.donor is not None
        for name in _REDUNDANT
    }
