"""Makes torch_files/objects.pth, network.pth and script.pth: what people save beside weights.

Objects of many classes, tensors of rare kinds, and a network that was pickled whole; the arrays of
the latter in network.npz.

python tests/golden/make_torch_objects.py     (needs torch and timm, which the tests do not)
"""

import argparse
import collections
import dataclasses
import datetime
import decimal
import enum
import fractions
import functools
import pathlib
import sys
import types
import uuid

import numpy as np
import timm
import torch
from randomized import randomize

FOLDER = pathlib.Path(__file__).with_name("torch_files")
SIZE = {"img_size": 8, "patch_size": 4, "embed_dim": 8, "depth": 1, "num_heads": 2}


class Color(enum.Enum):
    """A choice of the project."""

    RED = 1


@dataclasses.dataclass
class Settings:
    """Settings of the project."""

    rate: float
    color: Color


class StateDict(collections.OrderedDict):
    """A dict of the project's own."""


@dataclasses.dataclass
class Checkpoint:
    """A whole checkpoint."""

    model: StateDict
    epoch: int


def objects() -> dict:
    """One of each kind, by name."""
    return {
        "torch": torch.torch_version.TorchVersion("2.1.0"),
        "callbacks": {Color: {"best": 0.5}, Color.RED: 1, ("a", 1): 2},
        "settings": Settings(0.5, Color.RED),
        "namespace": argparse.Namespace(lr=1e-3, dtype=torch.float16),
        "zoned": datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC),
        "partial": functools.partial(torch.nn.LayerNorm, eps=1e-6),
        "numbers": [decimal.Decimal("1.5"), fractions.Fraction(1, 2), 1j, uuid.UUID(int=5)],
        "ranges": [slice(1, 2), range(3), ..., NotImplemented, bytearray(b"a"), {1, 2}],
        "numpy": [np.str_("a"), np.array(["a", "b"]), np.array([None], object), np.float32(2)],
        "layouts": [torch.strided, torch.float8_e4m3fn],
        "function": torch.nn.functional.relu,
        "error": ValueError("x"),
    }


def tensors() -> dict[str, torch.Tensor]:
    """Of rare kinds; those that are read come first."""
    values = torch.tensor([[0.5, -2.0], [3.0, 0.0]])
    return {
        "float8_e4m3fn": values.to(torch.float8_e4m3fn),
        "float8_e5m2": values.to(torch.float8_e5m2),
        "uint16": torch.tensor([1, 65535], dtype=torch.uint16),
        "complex64": torch.tensor([1 + 2j]),
        "sparse": values.to_sparse(),
        "quantised": torch.quantize_per_tensor(values, 0.1, 0, torch.qint8),
    }


def main() -> None:
    """Saves the files, with torch's own functions."""
    project = types.ModuleType("project")
    sys.modules["project"] = project
    for kind in (Color, Settings, StateDict, Checkpoint):
        kind.__module__ = "project"
        setattr(project, kind.__name__, kind)
    encoder = timm.models.vision_transformer.VisionTransformer(**SIZE, num_classes=3)
    randomize(encoder, 0)
    weights = encoder.state_dict()
    held = {"model": Checkpoint(StateDict(weights), 3), "tensors": tensors(), **objects()}
    torch.save(held, FOLDER / "objects.pth")
    torch.save({"network": encoder, "epoch": 3}, FOLDER / "network.pth")
    torch.jit.save(torch.jit.trace(encoder.eval(), torch.zeros(1, 3, 8, 8)), FOLDER / "script.pth")
    np.savez_compressed(
        FOLDER / "network.npz", **{name: value.numpy() for name, value in weights.items()}
    )
    for name in ("objects.pth", "network.pth", "script.pth", "network.npz"):
        print(name, f"{(FOLDER / name).stat().st_size / 1024:.1f} KiB")


if __name__ == "__main__":
    main()
