"""The same MAE in PyTorch, in a process of its own: the peer of benchmarks/train_step.py.

Two forms of it: ``timm``, a plain module of timm's blocks as the authors' is, and ``transformers``,
the library's ``ViTMAEForPreTraining``. This file needs PyTorch and one of the two, and nothing of
this package, so that another environment's Python can run it. It is given a :class:`Spec` as JSON,
and then takes a line of JSON for each task, which it answers with a line.
"""

import dataclasses
import functools
import importlib.metadata
import json
import os
import resource
import sys
import time
from collections.abc import Callable


@dataclasses.dataclass(frozen=True)
class Spec:
    """Network to train, and the options of its training.

    Attributes:
        kind: ``timm`` or ``transformers``.
        is_compiled: whether ``torch.compile`` is tried; where it fails the step runs without.
        batch_size, image_size, patch_size, channels: of square images.
        width, depth, num_heads, mlp_ratio: the encoder.
        decoder_width, decoder_depth, decoder_num_heads: the decoder.
        num_visible: patches of each image that are encoded.
        normalizes_pixels: whether targets are normalised patch by patch.
        mean, std: of pixel values from 0 to 1.
        dtype: ``float32``, or ``bfloat16`` for autocast.
        learning_rate, weight_decay, b1, b2: AdamW's; kernels alone are decayed.
        matmul_size: side of the matrices whose product is timed.
    """

    kind: str
    is_compiled: bool
    batch_size: int
    image_size: int
    patch_size: int
    channels: int
    width: int
    depth: int
    num_heads: int
    mlp_ratio: float
    decoder_width: int
    decoder_depth: int
    decoder_num_heads: int
    num_visible: int
    normalizes_pixels: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]
    dtype: str
    learning_rate: float
    weight_decay: float
    b1: float
    b2: float
    matmul_size: int

    @property
    def num_patches(self) -> int:
        """Returns the number of patches of an image."""
        return (self.image_size // self.patch_size) ** 2


def main(spec_as_json: str) -> None:
    """Answers each line of standard input until it ends."""
    # Whatever libraries print goes elsewhere: standard output is for answers.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def answer(**values) -> None:
        print(json.dumps(values), file=answers, flush=True)

    spec = Spec(**json.loads(spec_as_json))
    if lack := missing(spec):
        answer(error=lack)
        return
    worker = Worker(spec)
    answer(**worker.describe())
    for line in sys.stdin:
        task = json.loads(line)
        run = {"steps": worker.run_steps, "products": worker.run_products}[task["run"]]
        seconds, processor_seconds = run(task["count"])
        answer(seconds=seconds, processor_seconds=processor_seconds, peak_bytes=worker.peak_bytes())


def missing(spec: Spec) -> str:
    """Returns what is not installed and how to install it; empty if all is there."""
    names = [name for name in ("torch", spec.kind) if not _is_installed(name)]
    if not names:
        return ""
    return f"{sys.executable} has no {' and no '.join(names)}: pip install {' '.join(names)}"


class Worker:
    """The network with its optimizer, ready to take steps."""

    def __init__(self, spec: Spec):
        import torch

        self.spec, self.torch = spec, torch
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.is_on_gpu = self.device.type == "cuda"
        torch.manual_seed(0)
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        # As JAX multiplies float32 matrices on a GPU.
        torch.set_float32_matmul_precision("high")
        make = {"timm": make_timm_mae, "transformers": make_transformers_mae}[spec.kind]
        self.network = make(spec).to(self.device).train()
        self.optimizer = self._make_optimizer()
        shape = (spec.batch_size, spec.channels, spec.image_size, spec.image_size)
        self.images = torch.randint(0, 256, shape, dtype=torch.uint8, device=self.device)
        side = spec.matmul_size
        self.factors = torch.randn(2, side, side, device=self.device, dtype=self._dtype())
        self.note = ""
        began = time.perf_counter()
        self.loss = self._compiled() if spec.is_compiled else self._loss
        self.run_steps(1)
        self.compile_s = time.perf_counter() - began

    def describe(self) -> dict:
        """Returns a description of the network that was built."""
        names = ("torch", self.spec.kind)
        trained = (p for p in self.network.parameters() if p.requires_grad)
        return {
            "parameters": sum(p.numel() for p in trained),
            "is_compiled": self.spec.is_compiled and not self.note,
            "compile_s": self.compile_s,
            "note": self.note,
            "device": self.torch.cuda.get_device_name() if self.is_on_gpu else "cpu",
            "threads": self.torch.get_num_threads(),
            "versions": {name: importlib.metadata.version(name) for name in names},
        }

    def run_steps(self, count: int) -> tuple[float, float]:
        """Seconds of so many training steps, and seconds of processor time."""
        return self._timed(self._step, count)

    def run_products(self, count: int) -> tuple[float, float]:
        """The same of so many matrix products."""
        return self._timed(lambda: self.factors[0] @ self.factors[1], count)

    def peak_bytes(self) -> int:
        """Returns the peak of the GPU's memory, or that of the whole process on a CPU."""
        if self.is_on_gpu:
            return self.torch.cuda.max_memory_allocated()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 2**10

    def _step(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.loss(self.images).backward()
        self.optimizer.step()

    def _loss(self, images):
        spec, torch = self.spec, self.torch
        mean, std = (
            torch.tensor(values, device=self.device).view(1, -1, 1, 1)
            for values in (spec.mean, spec.std)
        )
        with torch.autocast(
            self.device.type, dtype=torch.bfloat16, enabled=spec.dtype == "bfloat16"
        ):
            return self.network((images.float() / 255 - mean) / std)

    def _compiled(self) -> Callable:
        """The compiled loss; the plain one, and a note why, where that does not work."""
        torch = self.torch
        try:
            compiled = torch.compile(self._loss)
            compiled(self.images).backward()
        except Exception as error:
            first_line = (str(error).splitlines() or [""])[0]
            self.note = f"torch.compile failed: {type(error).__name__}: {first_line}"
            return self._loss
        return compiled

    def _make_optimizer(self):
        spec = self.spec
        decayed, others = [], []
        for parameter in self.network.parameters():
            (decayed if parameter.ndim > 1 else others).append(parameter)
        groups = [
            {"params": decayed, "weight_decay": spec.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        # The fastest of PyTorch's forms of it.
        return self.torch.optim.AdamW(
            groups, lr=spec.learning_rate, betas=(spec.b1, spec.b2), fused=True
        )

    def _timed(self, run: Callable, count: int) -> tuple[float, float]:
        self._wait()
        began, processor_began = time.perf_counter(), time.process_time()
        for _ in range(count):
            run()
        self._wait()
        return time.perf_counter() - began, time.process_time() - processor_began

    def _wait(self) -> None:
        if self.is_on_gpu:
            self.torch.cuda.synchronize()

    def _dtype(self):
        return getattr(self.torch, self.spec.dtype)


def make_transformers_mae(spec: Spec):
    """The library's model, which returns its loss."""
    from torch import nn
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    config = ViTMAEConfig(
        image_size=spec.image_size,
        patch_size=spec.patch_size,
        num_channels=spec.channels,
        hidden_size=spec.width,
        num_hidden_layers=spec.depth,
        num_attention_heads=spec.num_heads,
        intermediate_size=int(spec.mlp_ratio * spec.width),
        decoder_hidden_size=spec.decoder_width,
        decoder_num_hidden_layers=spec.decoder_depth,
        decoder_num_attention_heads=spec.decoder_num_heads,
        decoder_intermediate_size=int(spec.mlp_ratio * spec.decoder_width),
        mask_ratio=1 - spec.num_visible / spec.num_patches,
        norm_pix_loss=spec.normalizes_pixels,
        layer_norm_eps=1e-6,
    )

    class Loss(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = ViTMAEForPreTraining(config)

        def forward(self, images):
            return self.model(images).loss

    return Loss()


def make_timm_mae(spec: Spec):
    """A masked autoencoder of timm's blocks, which returns its loss (He et al. 2022)."""
    import torch
    from timm.models.vision_transformer import Block
    from torch import nn

    norm = functools.partial(nn.LayerNorm, eps=1e-6)
    values = spec.patch_size**2 * spec.channels

    def blocks(width: int, depth: int, num_heads: int) -> nn.Sequential:
        options = {"mlp_ratio": spec.mlp_ratio, "qkv_bias": True, "norm_layer": norm}
        return nn.Sequential(*(Block(width, num_heads, **options) for _ in range(depth)))

    def token(width: int, is_trained: bool = True, count: int = 1) -> nn.Parameter:
        return nn.Parameter(0.02 * torch.randn(1, count, width), requires_grad=is_trained)

    class Mae(nn.Module):
        def __init__(self):
            super().__init__()
            side = spec.patch_size
            self.embedding = nn.Conv2d(spec.channels, spec.width, side, side)
            self.class_token = token(spec.width)
            # Fixed; which values they have costs nothing.
            self.positions = token(spec.width, False, spec.num_patches)
            self.encoder = blocks(spec.width, spec.depth, spec.num_heads)
            self.encoder_norm = norm(spec.width)
            self.bridge = nn.Linear(spec.width, spec.decoder_width)
            self.mask_token = token(spec.decoder_width)
            self.decoder_positions = token(spec.decoder_width, False, spec.num_patches + 1)
            self.decoder = blocks(spec.decoder_width, spec.decoder_depth, spec.decoder_num_heads)
            self.decoder_norm = norm(spec.decoder_width)
            self.head = nn.Linear(spec.decoder_width, values)

        def forward(self, images):
            tokens = self.embedding(images).flatten(2).transpose(1, 2) + self.positions
            order = torch.rand(tokens.shape[:2], device=tokens.device).argsort(dim=1)
            places = order.argsort(dim=1)
            visible = order[:, : spec.num_visible, None].expand(-1, -1, spec.width)
            tokens = torch.gather(tokens, 1, visible)
            tokens = torch.cat([self.class_token.expand(len(images), -1, -1), tokens], dim=1)
            tokens = self.bridge(self.encoder_norm(self.encoder(tokens)))
            hidden = spec.num_patches - spec.num_visible
            filled = torch.cat(
                [tokens[:, 1:], self.mask_token.expand(len(images), hidden, -1).to(tokens.dtype)],
                dim=1,
            )
            filled = torch.gather(filled, 1, places[..., None].expand(-1, -1, spec.decoder_width))
            tokens = torch.cat([tokens[:, :1], filled], dim=1) + self.decoder_positions
            predicted = self.head(self.decoder_norm(self.decoder(tokens)))[:, 1:]
            errors = ((predicted.float() - targets(images)) ** 2).mean(dim=-1)
            is_hidden = (places >= spec.num_visible).float()
            return (errors * is_hidden).sum() / is_hidden.sum()

    def targets(images):
        side = spec.patch_size
        grid = spec.image_size // side
        patches = images.reshape(len(images), spec.channels, grid, side, grid, side)
        patches = patches.permute(0, 2, 4, 3, 5, 1).reshape(len(images), grid * grid, values)
        if not spec.normalizes_pixels:
            return patches
        variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
        return (patches - mean) / (variance + 1e-6).sqrt()

    return Mae()


def _is_installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


if __name__ == "__main__":
    main(sys.argv[1])
