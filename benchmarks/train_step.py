"""The real training step of any config on this machine: images/s, utilisation, memory, compilation.

    python -m benchmarks.train_step --config=configs/imagenet_mae_vit_b16.py \\
        --config.batch_size=8 --config.model.dtype=float32 --peer=timm,transformers \\
        --out=benchmarks/results/train_step.json

The step is compiled as a job compiles it, and takes synthetic batches that lie on the device. What
is timed takes turns, in rounds, so that a drift meets all alike: this step, a matrix product in the
model's dtype, and with ``--peer`` the same MAE in PyTorch, in a process of its own
(benchmarks/peer_mae.py). A peer is ``timm`` or ``transformers``, by ``torch.compile`` where that
works; ``timm:eager`` goes without.

Model-FLOPs utilisation is the model's own count of operations over what as much time is worth at
the measured rate of matrix products (on a CPU, of processor time), and at the chip's documented
peak where that is known. Processor seconds are those of all threads of a process: on a CPU that
others use too, they say more than the time that passes, above all with ``--cores=1``, where no
thread waits for another.
A tokenizer or teacher that is not there is replaced by an untrained one.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags as absl_flags
from jaxtyping import PyTree
from ml_collections import ConfigDict

from benchmarks.environment import spread, write
from ddae_jax import compile_check
from ddae_jax.aot.chips import CHIPS
from ddae_jax.builders.methods import build_method
from ddae_jax.builders.networks import build_encoder
from ddae_jax.config import to_plain
from ddae_jax.jobs import cli, devices, exits
from ddae_jax.jobs.job import DataSpec
from ddae_jax.methods.vqkd import VqKd
from ddae_jax.training.program import TrainProgram
from ddae_jax.training.sharding import batch_sharding, check_divisible, make_mesh

OURS = "ddae_jax"
PEERS = ("timm", "transformers")
PEER_SCRIPT = pathlib.Path(__file__).with_name("peer_mae.py")


@dataclasses.dataclass(frozen=True)
class Times:
    """Durations of some runs: seconds that passed, and seconds of processor time."""

    seconds: float
    processor_seconds: float

    def of_each(self, count: int) -> "Times":
        """Returns the time of one of ``count`` runs."""
        return Times(self.seconds / count, self.processor_seconds / count)


class PeerFailed(ValueError):
    """A peer cannot be measured here."""


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, prints and writes; returns the exit status."""
    with exits.explain_bad_input():
        flags = cli.parse_config_flags(argv, f"benchmarks.train_step {__doc__}", _define, None)
        prepare_process(flags.cores, has_peers=bool(flags.peer))
        devices.start_devices(is_distributed=False)
        specs = {name: peer_spec(flags.config, name) for name in map(str.strip, flags.peer)}
        step = Step(request_of(flags.config))
        with contextlib.ExitStack() as stack:
            python = flags.peer_python or sys.executable
            peers = {n: stack.enter_context(peer(n, s, python)) for n, s in specs.items()}
            found = measure(step, peers, flags.rounds, flags.round_s)
    print(table(found))
    if flags.out:
        write(pathlib.Path(flags.out), found, ("optax",))
    return 0


def prepare_process(cores: int, has_peers: bool) -> None:
    """Before JAX looks for devices: how many cores, and a GPU's memory, are left to it."""
    if cores:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-cores:])
    if has_peers:
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")


def request_of(config: ConfigDict) -> compile_check.CompileRequest:
    """Builds the request of a compile check for a config on the devices at hand."""
    mesh = make_mesh(**config.mesh)
    check_divisible(config.batch_size, mesh, config.optimizer.micro_batches)
    job = compile_check.JOBS[config.job]
    job.resolve_config(config, None, ())
    data = DataSpec(num_classes=1000, image_size=tuple(config.model.image_size))
    return compile_check.CompileRequest(job, config, mesh, data, 1_281_167, 1.0, "")


class Step:
    """A compiled training step with its state and a batch."""

    def __init__(self, request: compile_check.CompileRequest):
        self.request, config, mesh = request, request.config, request.mesh
        program = _with_numbers(request.program())
        self.operations = config.batch_size * compile_check.flops_per_image(program, request)
        self._state = program.init_state(mesh)
        self.parameters = sum(leaf.size for leaf in jax.tree.leaves(self._state.params))
        self._batch = synthetic_batch(request)
        began = time.perf_counter()
        jitted = program.jit(mesh)
        lowered = jitted.lower(self._state, self._batch)
        self.trace_s = time.perf_counter() - began
        self._compiled = lowered.compile()
        self.compile_s = time.perf_counter() - began - self.trace_s
        self._multiply = self._product()

    def run_steps(self, count: int) -> Times:
        """Takes so many steps."""

        def run() -> PyTree:
            self._state, metrics = self._compiled(self._state, self._batch)
            return metrics

        return _timed(run, count)

    def run_products(self, count: int) -> Times:
        """Multiplies two matrices so many times."""
        return _timed(self._multiply, count)

    @property
    def matmul_size(self) -> int:
        """The side of these matrices."""
        return matmul_size()

    def memory(self) -> dict[str, int]:
        """Bytes: by the compiler; the device's own peak where it tells one; the process's."""
        analysis = self._compiled.memory_analysis()
        held = analysis.argument_size_in_bytes + analysis.output_size_in_bytes
        found = {
            "compiled_bytes": held + analysis.temp_size_in_bytes - analysis.alias_size_in_bytes
        }
        told = jax.local_devices()[0].memory_stats() or {}
        if "peak_bytes_in_use" in told:
            found["device_peak_bytes"] = told["peak_bytes_in_use"]
        return found

    def _product(self) -> Callable[[], PyTree]:
        side, dtype = self.matmul_size, jnp.dtype(self.request.config.model.dtype)
        left, right = (
            jax.random.normal(jax.random.key(seed), (side, side), dtype) for seed in (0, 1)
        )
        multiply = jax.jit(jnp.matmul)
        return lambda: multiply(left, right)


def matmul_size() -> int:
    """The side of matrices whose product keeps a device busy."""
    return 2048 if jax.default_backend() == "cpu" else 8192


def synthetic_batch(request: compile_check.CompileRequest) -> dict[str, jax.Array]:
    """Random images, and labels if there are any, laid out over the mesh."""
    draw = np.random.default_rng(0).integers

    def array(name: str, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        num_classes = request.config.data.get("num_classes") or request.data.num_classes
        end = 256 if name == "image" else min(num_classes, np.iinfo(leaf.dtype).max)
        values = draw(0, end, leaf.shape, leaf.dtype)
        return jax.device_put(values, batch_sharding(request.mesh))

    return {name: array(name, leaf) for name, leaf in request.batch().items()}


class Peer:
    """The process of a peer, which runs what it is told to."""

    def __init__(self, name: str, process: subprocess.Popen):
        self.name, self._process = name, process
        self.described = self._answer()
        self.peak_bytes = 0

    def run_steps(self, count: int) -> Times:
        """Takes so many steps."""
        return self._run("steps", count)

    def run_products(self, count: int) -> Times:
        """Multiplies two matrices so many times."""
        return self._run("products", count)

    def _run(self, what: str, count: int) -> Times:
        self._process.stdin.write(json.dumps({"run": what, "count": count}) + "\n")
        self._process.stdin.flush()
        answer = self._answer()
        self.peak_bytes = answer["peak_bytes"]
        return Times(answer["seconds"], answer["processor_seconds"])

    def _answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        answer = json.loads(line) if line else {"error": "its process has ended; see above"}
        if "error" in answer:
            raise PeerFailed(f"--peer={self.name}: {answer['error']}")
        return answer


@contextlib.contextmanager
def peer(name: str, spec: Mapping[str, Any], python: str) -> Iterator[Peer]:
    """A peer in a process of its own, ready to be told what to run.

    Raises ``PeerFailed`` if it cannot be built, and says what to install.
    """
    arguments = [python, str(PEER_SCRIPT), json.dumps(spec)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(arguments, **pipes) as process:
        try:
            yield Peer(name, process)
        finally:
            process.stdin.close()


def peer_spec(config: ConfigDict, name: str) -> dict[str, Any]:
    """Returns the fields of ``peer_mae.Spec`` from which a peer is built.

    Raises ``ValueError`` for a name that is no peer, and for what is not MAE as published.
    """
    kind, _, suffix = name.partition(":")
    if kind not in PEERS or suffix not in ("", "eager"):
        raise ValueError(f"--peer={name}; known: {', '.join(PEERS)}, each also with :eager")
    is_published = (
        config.get("method") == "mae"
        and config.supervision.mode == "last"
        and config.model.encoder_input == "visible"
        and config.data.augment_in == "workers"
    )
    if not is_published or len(set(config.model.image_size)) > 1:
        raise ValueError(
            f"--peer={name} is MAE as published, of square images: give method='mae', "
            "supervision.mode='last', model.encoder_input='visible', and "
            "data.augment_in='workers', as it does not augment"
        )
    encoder, decoder, optimizer = build_encoder(config), config.decoder, config.optimizer
    method = build_method(config)
    return {
        "kind": kind,
        "is_compiled": suffix != "eager",
        "batch_size": config.batch_size,
        "image_size": config.model.image_size[0],
        "patch_size": encoder.patch_size,
        "channels": config.data.channels,
        "width": encoder.width,
        "depth": encoder.depth,
        "num_heads": encoder.num_heads,
        "mlp_ratio": encoder.mlp_ratio,
        "decoder_width": decoder.width,
        "decoder_depth": decoder.depth,
        "decoder_num_heads": decoder.num_heads,
        "num_visible": method.num_visible,
        "normalizes_pixels": config.targets.normalize_pixels,
        "mean": list(config.data.mean),
        "std": list(config.data.std),
        "dtype": config.model.dtype,
        "learning_rate": optimizer.learning_rate * config.batch_size / 256,
        "weight_decay": optimizer.weight_decay,
        "b1": optimizer.b1,
        "b2": optimizer.b2,
        "matmul_size": matmul_size(),
    }


def measure(
    step: Step, peers: Mapping[str, Peer], num_rounds: int, round_s: float
) -> dict[str, Any]:
    """Times all sides in turn, and tells what came of it as plain values."""
    sides = {OURS: step, **peers}
    runs = {
        f"{side} {what}": getattr(sides[side], f"run_{what}")
        for side in sides
        for what in ("steps", "products")
    }
    counts = {}
    for name, run in runs.items():
        run(1)  # what comes first is slower
        share = round_s if name.endswith("steps") else round_s / 4
        counts[name] = max(1, round(share / run(1).seconds))
    rounds = []
    for index in range(num_rounds):
        order = list(runs)[:: -1 if index % 2 else 1]
        rounds.append({name: runs[name](counts[name]).of_each(counts[name]) for name in order})
    config, mesh = step.request.config, step.request.mesh
    found = {
        "config": to_plain(config),
        "batch_size": config.batch_size,
        "model_operations_per_image": step.operations / config.batch_size,
        "matmul_size": step.matmul_size,
        "rounds": num_rounds,
        "steps_a_round": {name: counts[f"{name} steps"] for name in sides},
        "load_average": os.getloadavg()[0],
        "devices": f"{mesh.size} x {jax.devices()[0].device_kind}",
        "sides": {name: _of_side(name, rounds, step) for name in sides},
    }
    found["sides"][OURS] |= step.memory() | {
        "parameters": step.parameters,
        "trace_s": step.trace_s,
        "compile_s": step.compile_s,
    }
    for name, side in peers.items():
        found["sides"][name] |= side.described | {"peak_bytes": side.peak_bytes}
    found["ratios"] = {name: _ratios(name, rounds) for name in peers}
    return found


def table(found: Mapping[str, Any]) -> str:
    """The findings, in lines."""
    config = found["config"]
    lines = [
        f"{config.get('method', config['job'])}, ViT-{config['model']['size']}, "
        f"{'x'.join(map(str, config['model']['image_size']))} pixels, {found['batch_size']} images "
        f"a step, {config['model']['dtype']}, on {found['devices']}; {found['rounds']} rounds",
        f"{found['model_operations_per_image'] / 1e9:.2f} GFLOP an image by the model",
        "",
        f"{'':22s}{'images/s':>10s}{'[least, most]':>18s}{'ms/step':>10s}{'cpu ms':>10s}"
        f"{'of matmul':>11s}{'of peak':>9s}{'GiB':>7s}{'compile s':>11s}",
    ]
    for name, side in found["sides"].items():
        rate, peak = side["images_per_s"], side.get("share_of_peak")
        interval = f"[{rate['min']:.4g}, {rate['max']:.4g}]"
        lines.append(
            f"{name:22s}{rate['median']:>10.4g}{interval:>18s}"
            f"{1e3 * side['step_s']['median']:>10.1f}"
            f"{1e3 * side['step_processor_s']['median']:>10.1f}"
            f"{side['share_of_matmul_rate']['median']:>11.1%}"
            f"{format(peak['median'], '.1%') if peak else '-':>9s}"
            f"{_peak_bytes(side) / 2**30:>7.2f}{side['compile_s']:>11.1f}"
        )
    lines.append("")
    for name, side in found["sides"].items():
        lines.append(f"matrix products, {name}: {side['matmul_rate']['median'] / 1e9:,.1f} GFLOP/s")
        if side.get("note"):
            lines.append(f"{name}: {side['note']}")
    for name, ratios in found["ratios"].items():
        speed, processor = ratios["images_per_s"], ratios["processor_time"]
        lines.append(
            f"{OURS} against {name}: {speed['median']:.2f}x the images/s "
            f"[{speed['min']:.2f}, {speed['max']:.2f}], {processor['median']:.2f}x the processor "
            f"time [{processor['min']:.2f}, {processor['max']:.2f}]"
        )
    return "\n".join(lines)


def _of_side(name: str, rounds: Sequence[Mapping[str, Times]], step: Step) -> dict[str, Any]:
    """Rates and utilisation of a side, over the rounds."""
    mesh = step.request.mesh
    steps = [r[f"{name} steps"] for r in rounds]
    products = [r[f"{name} products"] for r in rounds]
    product = 2.0 * step.matmul_size**3
    achieved = [step.operations / s.seconds / mesh.size for s in steps]
    if jax.default_backend() == "cpu":  # other processes slow the two down by chance
        each = [
            (s.processor_seconds, p.processor_seconds) for s, p in zip(steps, products, strict=True)
        ]
    else:
        each = [(s.seconds * mesh.size, p.seconds) for s, p in zip(steps, products, strict=True)]
    found = {
        "images_per_s": spread([step.request.config.batch_size / s.seconds for s in steps]),
        "step_s": spread([s.seconds for s in steps]),
        "step_processor_s": spread([s.processor_seconds for s in steps]),
        "matmul_rate": spread([product / p.seconds for p in products]),
        "matmul_rate_of_processor_time": spread(
            [product / max(p.processor_seconds, 1e-9) for p in products]
        ),
        "share_of_matmul_rate": spread([step.operations / a / (product / b) for a, b in each]),
    }
    chip = CHIPS.get(mesh.devices.flat[0].device_kind)
    if chip and step.request.config.model.dtype == "bfloat16":
        found["share_of_peak"] = spread([a / chip.peak_flops for a in achieved])
    return found


def _ratios(name: str, rounds: Sequence[Mapping[str, Times]]) -> dict[str, dict[str, float]]:
    """Ours to a peer's, round by round."""
    pairs = [(r[f"{OURS} steps"], r[f"{name} steps"]) for r in rounds]
    # Processor time of a GPU's host says little, and may be nothing.
    processor = [a.processor_seconds / max(b.processor_seconds, 1e-9) for a, b in pairs]
    return {
        "images_per_s": _with_quartiles([b.seconds / a.seconds for a, b in pairs]),
        "processor_time": _with_quartiles(processor),
    }


def _with_quartiles(values: Sequence[float]) -> dict[str, float]:
    found = spread(values)
    if len(values) > 1:
        first, _, third = statistics.quantiles(values, n=4, method="inclusive")
        found |= {"first_quartile": first, "third_quartile": third}
    return found


def _peak_bytes(side: Mapping[str, Any]) -> int:
    names = ("device_peak_bytes", "peak_bytes", "compiled_bytes")
    return next(side[name] for name in names if name in side)


def _timed(run: Callable[[], PyTree], count: int) -> Times:
    began, processor_began = time.perf_counter(), time.process_time()
    for _ in range(count):
        result = run()
    jax.block_until_ready(result)
    return Times(time.perf_counter() - began, time.process_time() - processor_began)


def _with_numbers(program: TrainProgram) -> TrainProgram:
    """Random parameters for a tokenizer or teacher that is not there, which cost as much."""
    draw, method = np.random.default_rng(0).normal, program.task
    if not any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(method.frozen)):
        return program
    frozen = jax.tree.map(lambda leaf: np.float32(draw(0, 0.02, leaf.shape)), method.frozen)
    if isinstance(method, VqKd):
        teacher = dataclasses.replace(method.teacher, params=frozen)
        return dataclasses.replace(program, task=dataclasses.replace(method, teacher=teacher))
    return dataclasses.replace(program, task=dataclasses.replace(method, frozen=frozen))


def _define(flags: absl_flags.FlagValues) -> None:
    def define(kind: str, name: str, default, text: str, **options) -> None:
        getattr(absl_flags, f"DEFINE_{kind}")(name, default, text, flag_values=flags, **options)

    define("integer", "rounds", 7, "In which all sides take turns.", lower_bound=1)
    define("float", "round_s", 3.0, "Seconds that a side takes steps for in each.", lower_bound=0)
    define("list", "peer", [], "timm, transformers, or either with :eager; the config is MAE's.")
    define("string", "peer_python", "", "Python that has PyTorch; this one if empty.")
    define("integer", "cores", 0, "Of this machine that all may use; 0 for all.", lower_bound=0)
    define("string", "out", "", "JSON file that all of it is written to.")


if __name__ == "__main__":
    sys.exit(main())
