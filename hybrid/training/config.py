"""The `training.` and `optimizer.` sections."""

import dataclasses

from hybrid.config import MOST_SEED, ConfigError, key

LARGEST_BFLOAT16_DECAY = 0.99


@dataclasses.dataclass(frozen=True)
class StepConfig:
    """The keys under `training.` that a compiled step depends on; runs that share them share it."""

    num_steps: int = key(1000, "optimizer steps of the whole run", at_least=1)
    batch_size: int = key(16, "sequences a step, over all devices and micro-batches", at_least=1)
    context_length: int = key(256, "predicted positions of a row", at_least=1)
    num_microbatches: int = key(1, "parts of a batch, one after the other", at_least=1)
    z_loss: float = key(0.0, "weight of the mean squared logsumexp in the objective", at_least=0)
    load_balance_loss: float = key(
        0.0, "weight of the routers' load-balancing loss, formed once a step", at_least=0
    )
    router_z_loss: float = key(
        0.0, "weight of the mean squared logsumexp of the routers' logits", at_least=0
    )


@dataclasses.dataclass(frozen=True)
class TrainingConfig(StepConfig):
    """All keys under `training.`."""

    window_schedule: tuple[tuple[float, int], ...] = key(
        (),
        "windows in training: (share of the steps, window) one after the other, shares summing "
        "to 1, the last window model.window_size; empty: model.window_size throughout",
        formerly="model.window_schedule",
    )
    window_choices: tuple[tuple[float, int], ...] = key(
        (),
        "windows drawn in training: (probability, window) of a step, probabilities summing to 1; "
        "empty: none is drawn",
    )
    window_choices_share: float = key(
        0.9,
        "share of the steps, the first ones, whose window is drawn; the rest has model.window_size",
        more_than=0,
        at_most=1,
    )
    seed: int = key(
        0, "of the initialisation and of the order of rows", at_least=0, at_most=MOST_SEED
    )
    log_every: int = key(1, "steps between training rows of metrics.jsonl", at_least=1)
    max_bad_steps: int = key(10, "stop after so many non-finite steps in a row", at_least=1)
    profile_start: int = key(0, "first step of a jax.profiler trace; 0: no trace", at_least=0)
    profile_steps: int = key(3, "steps in the trace", at_least=1)
    peak_flops: float = key(
        0.0, "peak FLOP/s of a device for MFU; 0: known or measured; -1: no MFU", at_least=-1
    )
    tensorboard: bool = key(True, "write TensorBoard event files")

    def __post_init__(self):
        _check_windows("window_schedule", "shares", self.window_schedule)
        _check_windows("window_choices", "probabilities", self.window_choices)
        if self.window_schedule and self.window_choices:
            problem = "can't be combined with training.window_schedule"
            raise ConfigError("window_choices", problem, self.window_choices)

    @property
    def step(self) -> StepConfig:
        """What the compiled step depends on."""
        names = [field.name for field in dataclasses.fields(StepConfig)]
        return StepConfig(**{name: getattr(self, name) for name in names})


def _check_windows(name: str, shares: str, windows: tuple[tuple[float, int], ...]) -> None:
    parts = [share for share, _ in windows]
    if any(window < 1 for _, window in windows):
        raise ConfigError(name, "must have windows of at least 1", windows)
    if parts and (min(parts) <= 0 or abs(sum(parts) - 1) > 1e-6):
        raise ConfigError(name, f"must have {shares} above 0 that sum to 1", windows)


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Keys under `optimizer.`."""

    name: str = key("adamw", "the optimizer", choices=("adamw", "adafactor", "muon"))
    learning_rate: float = key(1e-3, "the peak of the schedule", at_least=0)
    warmup_fraction: float = key(
        0.02, "share of training.num_steps with a rising rate", at_least=0, at_most=1
    )
    schedule: str = key(
        "cosine",
        "after the warm-up: cosine; wsd (stays, then falls linearly); constant",
        choices=("cosine", "wsd", "constant"),
    )
    decay_fraction: float = key(
        0.2, "share of training.num_steps in which wsd falls", at_least=0, at_most=1
    )
    final_fraction: float = key(
        0.1, "the last step's rate as a share of the peak (cosine, wsd)", at_least=0, at_most=1
    )
    weight_decay: float = key(
        0.1, "decoupled, times the learning rate; not on norms and scalars", at_least=0
    )
    clip_norm: float = key(1.0, "the gradient's largest global norm; 0: no clipping", at_least=0)
    beta1: float = key(0.9, "decay of the first moment (adamw; muon's Adam part)", at_least=0)
    beta2: float = key(0.95, "decay of the second moment (adamw; muon's Adam part)", at_least=0)
    eps: float = key(1e-8, "added to the root of the second moment", more_than=0)
    muon_beta: float = key(0.95, "muon's momentum", at_least=0)
    moment_dtype: str = key(
        "float32",
        "what moments are kept in; they are computed in at least float32",
        choices=("float32", "bfloat16"),
    )
    freeze: tuple[str, ...] = key(
        (),
        "patterns of parameters that are not trained, as of a shell: embedder/*, "
        "segments/*/mixer/*, *_norm/scale",
    )

    def __post_init__(self):
        for name in ("beta1", "beta2", "muon_beta"):
            if getattr(self, name) >= 1:
                raise ConfigError(name, "must be less than 1", getattr(self, name))
        if self.moment_dtype == "bfloat16":
            self._check_narrow()
        if self.schedule == "wsd" and self.warmup_fraction + self.decay_fraction > 1:
            raise ConfigError(
                "decay_fraction",
                f"leaves no room beside optimizer.warmup_fraction ({self.warmup_fraction})",
                self.decay_fraction,
                "together at most 1",
            )

    def _check_narrow(self) -> None:
        """What a moment gains or loses in a step must not be rounded away."""
        if self.name == "adafactor":
            problem = "does not serve optimizer.name adafactor"
            raise ConfigError("moment_dtype", problem, self.moment_dtype, "float32")
        used = ("beta1", "beta2", "muon_beta") if self.name == "muon" else ("beta1", "beta2")
        for name in used:
            if getattr(self, name) > LARGEST_BFLOAT16_DECAY:
                problem = "is too slow for moments kept in bfloat16"
                accepted = f"at most {LARGEST_BFLOAT16_DECAY}, or optimizer.moment_dtype=float32"
                raise ConfigError(name, problem, getattr(self, name), accepted)
