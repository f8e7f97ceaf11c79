"""A run's whole config: every section in one frozen dataclass, with the checks across sections.

Pages start from `defaults()` and fill in what they change; commands call `load`.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import ml_collections
from jax.sharding import AbstractMesh, Mesh

from hybrid import config as config_lib
from hybrid import origin as origins
from hybrid.config import ConfigError, errors_under, key, section
from hybrid.data.config import DataConfig
from hybrid.data.tasks import TASKS
from hybrid.evaluation.config import EvalConfig
from hybrid.inference.config import InferenceConfig
from hybrid.model.config import LoraConfig, ModelConfig
from hybrid.model.pattern import plan_layers
from hybrid.ops.attention import ATTENTION
from hybrid.pages import load_page
from hybrid.process.config import CompilationCacheConfig, DistributedConfig, XlaConfig
from hybrid.sharding import MeshConfig, num_batch_parts
from hybrid.training.config import OptimizerConfig, TrainingConfig
from hybrid.workdir.config import CheckpointConfig


@dataclasses.dataclass(frozen=True)
class Experiment:
    """All sections of a run; raises ConfigError where they contradict each other."""

    model: ModelConfig = section(ModelConfig)
    data: DataConfig = section(DataConfig)
    training: TrainingConfig = section(TrainingConfig)
    optimizer: OptimizerConfig = section(OptimizerConfig)
    eval: EvalConfig = section(EvalConfig)
    checkpoint: CheckpointConfig = section(CheckpointConfig)
    mesh: MeshConfig = section(MeshConfig)
    inference: InferenceConfig = section(InferenceConfig)
    lora: LoraConfig = section(LoraConfig)
    distributed: DistributedConfig = section(DistributedConfig)
    compilation_cache: CompilationCacheConfig = section(CompilationCacheConfig)
    xla: XlaConfig = section(XlaConfig)
    init_from: str = key(
        "",
        "start from the parameters of this folder: a run's workdir or a Hugging Face folder",
        path="remote",
    )
    inherit_model: bool = key(
        False,
        "model.* and the tokenizer are those of init_from, whatever the page says; dtype, remat, "
        "unroll, attention and overrides on the command line still count",
    )

    def __post_init__(self):
        with errors_under("model."):
            plan_layers(self.model)
            self._check_attention()
            check_x64(self.model.dtype)
        if self.lora.rank and not self.init_from:
            raise ConfigError("lora.rank", "needs a base to adapt", self.lora.rank, "set init_from")
        if self.lora.rank and self.optimizer.freeze:
            problem = "has no use beside lora.rank: only the adapters are trained"
            raise ConfigError("optimizer.freeze", problem, self.optimizer.freeze)
        for name in ("load_balance_loss", "router_z_loss"):
            weight = getattr(self.training, name)
            if weight and not self.model.num_experts:
                problem = "is set although model.num_experts is 0"
                raise ConfigError(f"training.{name}", problem, weight, "0")
        rows, parts = self.training.batch_size, self.training.num_microbatches
        if rows % parts:
            problem = f"must divide training.batch_size ({rows})"
            raise ConfigError("training.num_microbatches", problem, parts)
        lengths = self.eval.lengths(self.training.context_length)
        self._check_positions(lengths)
        if self.data.is_task and self.eval.stride:
            problem = f"is set although data.source is {self.data.source}"
            raise ConfigError("eval.stride", problem, self.eval.stride, "0")
        if self.data.is_task:
            check = TASKS[self.data.source].check
            vocab_size, trained = self.model.vocab_size, self.training.context_length
            check(self.data.task, trained, vocab_size, "training.context_length")
            for length in lengths:
                check(self.data.task, length, vocab_size, "eval.context_length")

    def _check_positions(self, eval_lengths: tuple[int, ...]) -> None:
        """No row is longer than the table of learned positions."""
        most, retrieval = self.model.learned_positions, self.eval.retrieval
        longest = {
            "training.context_length": self.training.context_length,
            "eval.context_length": max(eval_lengths),
            "eval.retrieval.lengths": max(retrieval.lengths) if retrieval.tasks else 0,
        }
        for name, length in longest.items():
            if 0 < most < length:
                problem = "is longer than the table of positions"
                accepted = f"at most model.learned_positions ({most})"
                raise ConfigError(name, problem, length, accepted)

    def _check_attention(self) -> None:
        """A forced implementation must serve every layer; nothing falls back later."""
        name = self.model.attention
        if name == "auto":
            return
        if name not in ATTENTION.names:
            accepted = "auto, " + ", ".join(sorted(ATTENTION.names))
            raise ConfigError("attention", "is not an attention implementation", name, accepted)
        for spec in dict.fromkeys(plan_layers(self.model).layers()):
            request = spec.mixer.request(self.model, self.training.context_length)
            reason = None if request is None else ATTENTION.explain(request)[name]
            if reason:
                problem = f"does not serve the {spec.kind} layers ({reason})"
                raise ConfigError("attention", problem, name, "auto chooses a kind at a time")

    def check_mesh(self, mesh: Mesh | AbstractMesh) -> None:
        """Raises: ConfigError by the key of what a mesh axis doesn't divide, batch or model."""
        if mesh.shape["expert"] > 1 and not self.model.num_experts:
            problem, got = "splits experts, and the model has none", mesh.shape["expert"]
            raise ConfigError("mesh.expert", problem, got, "1")
        by_tensor = dict.fromkeys(("num_heads", "ffn_dim", "vocab_size"), "tensor")
        by_name = {"d_model": "fsdp context", **by_tensor, "num_experts": "expert"}
        sizes = {name: getattr(self.model, name) for name in by_name}
        for mixer in plan_layers(self.model).mixers():
            sizes |= mixer.split_sizes()
        for name, size in sizes.items():
            split = [axis for axis in by_name.get(name, "tensor").split() if mesh.shape[axis] > 1]
            parts = math.prod(mesh.shape[axis] for axis in split)
            if size % parts:
                problem = f"must be a multiple of mesh.{' × '.join(split)} ({parts})"
                raise ConfigError(f"model.{name}", problem, size)
        rows = self.training.batch_size // self.training.num_microbatches
        parts = num_batch_parts(mesh)
        if rows % parts:
            problem = f"a micro-batch has {rows} rows, which the mesh's data × fsdp ({parts}) "
            problem += "must divide"
            raise ConfigError("training.batch_size", problem, self.training.batch_size)
        self._check_length(mesh, "training", self.training.context_length)
        self.check_context(mesh)

    def check_context(self, mesh: Mesh | AbstractMesh) -> None:
        """Raises: ConfigError where `mesh.context` does not split what is evaluated."""
        parts = mesh.shape["context"]
        for spec in plan_layers(self.model).layers():
            if parts > 1 and not spec.mixer.SPLITS_TIME:
                problem = f"splits time, which {spec.about.title} ({spec.letter}) does not allow"
                raise ConfigError("mesh.context", problem, parts, "1")
        if self.eval.mode != "cached":  # whose chunks the compiler splits
            for length in self.eval.lengths(self.training.context_length):
                self._check_length(mesh, "eval", length)

    def _check_length(self, mesh: Mesh | AbstractMesh, section: str, length: int) -> None:
        parts = mesh.shape["context"]
        if parts > 1 and length % (2 * parts):
            problem = f"must be a multiple of twice mesh.context ({2 * parts})"
            raise ConfigError(f"{section}.context_length", problem, length)


def check_x64(dtype: str) -> None:
    """Raises: ConfigError for float64 outside jax's x64 mode."""
    if dtype == "float64" and not jax.config.read("jax_enable_x64"):
        raise ConfigError("dtype", "needs jax's x64 mode", dtype, "set JAX_ENABLE_X64=1")


def defaults() -> ml_collections.ConfigDict:
    """Every key at its default, for a page to fill in."""
    return config_lib.defaults(Experiment)


def from_config(values: Mapping[str, Any] | ml_collections.ConfigDict) -> Experiment:
    """The checked experiment of a ConfigDict or nested dict; keys left out have their default.

    Raises: ConfigError naming the dotted key.
    """
    if isinstance(values, ml_collections.ConfigDict):
        values = values.to_dict()
    return config_lib.build(Experiment, values)


def load(page: str, overrides: Mapping[str, str] | None = None) -> Experiment:
    """The experiment of a page (`configs/tiny.py:local`) with `overrides` (dotted key -> text)."""
    parsed = config_lib.parse_overrides(Experiment, overrides or {})
    values = config_lib.updated(load_page(page), parsed)
    init_from, inherits = (
        config_lib.checked(Experiment, name, values.get(name, default))
        for name, default in (("init_from", ""), ("inherit_model", False))
    )
    if inherits and not init_from:
        raise ConfigError("init_from", "is empty although inherit_model is set")
    if init_from:
        origin = origins.find(init_from)
        # From any directory: a run remembers where its base is.
        parsed["init_from"] = str(origin.path.resolve())
        made = origins.inherit if inherits else origins.with_bos
        values = config_lib.updated(made(values, origin), parsed)
    return from_config(values)


def load_distributed(page: str | None, overrides: Mapping[str, str]) -> DistributedConfig:
    """The `distributed.` section alone: processes are joined before a device may be looked at."""
    parsed = config_lib.parse_overrides(Experiment, overrides)
    values = config_lib.updated(load_page(page) if page else {}, parsed)
    sections = {name: values[name] for name in ("distributed",) if name in values}
    return config_lib.build(Experiment, sections).distributed


def to_dict(experiment: Experiment) -> dict[str, Any]:
    """Nested plain values, as `config.json` holds them (lists in place of tuples)."""
    return ml_collections.ConfigDict(config_lib.to_dict(experiment)).to_dict()
