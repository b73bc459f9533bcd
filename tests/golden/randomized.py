"""What the scripts that make golden arrays share. They need torch; the tests do not."""

import importlib.metadata
import pathlib
from collections.abc import Sequence

import numpy as np
import torch


def randomize(model: torch.nn.Module, seed: int) -> None:
    """Makes every parameter random: norms around 1, all else around 0; fixed ones stay."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_scale = parameter.ndim == 1 and ("norm" in name and name.endswith("weight"))
        noise = 0.1 * torch.randn(parameter.shape, generator=generator)
        parameter.data = noise + float(is_scale)


def store(
    name: str, model: torch.nn.Module, arrays: dict, gradients: Sequence[str], *packages: str
) -> None:
    """Writes ``NAME.npz``: the arrays, ``weights/NAME``, some ``gradients/NAME``, and versions."""
    path = pathlib.Path(__file__).with_name(f"{name}.npz")
    parameters = dict(model.named_parameters())
    found = {name: _array(value) for name, value in arrays.items()}
    found |= {f"gradients/{name}": _array(parameters[name].grad) for name in gradients}
    found |= {f"weights/{name}": _array(value) for name, value in model.state_dict().items()}
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("torch", *packages)]
    np.savez_compressed(path, made_with=", ".join(versions), **found)
    print(path, f"{path.stat().st_size / 1024:.0f} KiB", *versions)


def _array(value) -> np.ndarray:
    value = value.detach().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
    return value.astype(np.float32) if value.dtype == np.float64 else value
