"""transformers' side: the tiny models with keyed weights, their logits and gradients.

Only this file imports torch. Attention and experts run eagerly, the plain way. A float64 model of
transformers has float32 islands (norms, softmax, rotary angles, the router); `wide()` drains them,
so that two programs that compute the same agree to 1e-12 and a tolerance need not hide anything.
"""

import contextlib
import importlib
import pathlib
from typing import NamedTuple

import numpy as np
import torch
import transformers
from pretrained.parity import keyed
from pretrained.parity.variants import VARIANTS, Variant
from safetensors.numpy import load_file
from transformers import modeling_rope_utils

DTYPES = {"float32": torch.float32, "float64": torch.float64}


class Outputs(NamedTuple):
    """logits [b, t, v], nll [b, t], and the mean nll's gradients by the tensors' names."""

    logits: np.ndarray
    nll: np.ndarray
    gradients: dict[str, np.ndarray]


class _Wide:
    """The torch module with float64 where code says float32."""

    float = float32 = torch.float64

    def __getattr__(self, name):
        return getattr(torch, name)


@contextlib.contextmanager
def wide(dtype: str):
    """With float64, transformers' literal float32 means float64 while this is open."""
    if dtype == "float32":
        yield
        return
    files = [importlib.import_module(f"transformers.models.{n}.modeling_{n}") for n in _FAMILY]
    files.append(modeling_rope_utils)
    narrow = torch.Tensor.float
    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = torch.Tensor.double
    for file in files:
        file.torch = _Wide()
    try:
        yield
    finally:
        for file in files:
            file.torch = torch
        torch.Tensor.float = narrow
        torch.set_default_dtype(torch.float32)


_FAMILY = ("gemma2", "gemma3", "gemma4")


def build(variant: Variant, seed: int, dtype: str = "float32") -> transformers.PreTrainedModel:
    """The model with keyed weights; inside `wide(dtype)`."""
    config = getattr(transformers, variant.config)(**_arguments(variant))
    model = getattr(transformers, variant.model)(config).to(DTYPES[dtype]).eval()
    model.set_attn_implementation("eager")
    if variant.keys.get("enable_moe_block"):
        model.set_experts_implementation("eager")
    with torch.no_grad():
        for name, tensor in own_tensors(model).items():
            values = keyed.weight(name, tuple(tensor.shape), seed, variant.norm_offset)
            tensor.copy_(torch.from_numpy(values))
    return model


def _arguments(variant: Variant) -> dict:
    if variant.wrapper is None:
        return variant.keys
    return {"text_config": variant.keys, **variant.wrapper}


def own_tensors(model) -> dict[str, torch.Tensor]:
    """The tensors that a file holds: parameters and saved buffers, the tied head left out."""
    tensors = model.state_dict(keep_vars=True)
    return {name: tensor for name, tensor in tensors.items() if name != "lm_head.weight"}


def run(model, rows: np.ndarray) -> Outputs:
    """The outputs for rows [b, t + 1]; layer scalars count as trained."""
    tensors = own_tensors(model)
    for tensor in tensors.values():
        tensor.requires_grad_()
        tensor.grad = None
    rows = torch.from_numpy(rows).long()
    logits = model(input_ids=rows[:, :-1], use_cache=False).logits
    nll = torch.nn.functional.cross_entropy(logits.transpose(1, 2), rows[:, 1:], reduction="none")
    nll.mean().backward()
    gradients = {
        name: tensor.grad.numpy().copy()
        for name, tensor in tensors.items()
        if tensor.grad is not None
    }
    return Outputs(logits.detach().numpy(), nll.detach().numpy(), gradients)


def outputs(name: str, seed: int, rows: np.ndarray, dtype: str) -> Outputs:
    """Builds and runs a variant."""
    with wide(dtype):
        return run(build(VARIANTS[name], seed, dtype), rows)


def save(name: str, seed: int, folder: pathlib.Path) -> dict[str, tuple[int, ...]]:
    """transformers' own folder of a variant; returns the shapes of the tensors in it.

    Raises: ValueError where the file does not hold the keyed weights under those names.
    """
    variant = VARIANTS[name]
    build(variant, seed).save_pretrained(folder)
    (path,) = folder.glob("*.safetensors")
    saved = load_file(path)
    shapes = {name: values.shape for name, values in saved.items()}
    wanted = keyed.weights(shapes, seed, variant.norm_offset)
    wrong = [name for name in saved if not np.array_equal(saved[name], wanted[name])]
    if wrong:
        raise ValueError(f"not saved as set: {wrong}")
    return shapes
