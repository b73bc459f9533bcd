"""Text of a compile check's results, for people."""

from collections.abc import Mapping
from typing import Any

_KINDS = ("parameters", "optimizer", "teacher", "batch", "activations")


def report(results: Mapping[str, Any]) -> str:
    """Formats the results of :func:`ddae_jax.compile_check.analyze` as lines of text."""
    mesh = results["mesh"]
    lines = [
        f"{results['topology']}: {results['num_devices']} devices, data={mesh['data']} x "
        f"fsdp={mesh['fsdp']}; {results['batch_size']} images a step, "
        f"{results['batch_per_device']} on each",
        _fits(results),
        "",
        *_memory(results),
    ]
    if "compile_s" in results:
        lines += ["", *_work(results)]
    if "bound" in results:
        lines += ["", *_speed(results)]
    if "largest_batch_per_device" in results:
        each = results["largest_batch_per_device"]
        total = each * results["num_devices"]
        lines += ["", f"largest batch that fits: {each} on each device, {total} in all"]
    return "\n".join(lines)


def _fits(results: Mapping[str, Any]) -> str:
    if results["fits"]:
        return "it fits"
    return (
        f"it does not fit: {results['why']}. Raise optimizer.micro_batches or mesh.fsdp, set "
        "model.rematerialization='full', or lower batch_size; --search finds the largest batch"
    )


def _memory(results: Mapping[str, Any]) -> list[str]:
    held, chip = results["bytes_per_device"], results["chip"]
    lines = [f"{'on each device':24s}{'GiB':>10s}"]
    lines += [f"  {kind:22s}{_gib(held[kind]):>10s}" for kind in _KINDS if kind in held]
    lines.append(f"  {'together':22s}{_gib(sum(held.values())):>10s}")
    if "memory_bytes" in chip:
        lines.append(f"  {'of a ' + chip['name']:22s}{_gib(chip['memory_bytes']):>10s}")
        usable = results.get("usable_bytes", chip["memory_bytes"])
        if usable < chip["memory_bytes"]:
            lines.append(
                f"  {'of which JAX takes':22s}{_gib(usable):>10s}  (XLA_PYTHON_CLIENT_MEM_FRACTION)"
            )
    return lines


def _work(results: Mapping[str, Any]) -> list[str]:
    flops = results["flops_per_image"]
    lines = [
        f"operations an image:     {flops['compiled'] / 1e9:.1f} GFLOP compiled, "
        f"{flops['model'] / 1e9:.1f} by the model ({flops['ratio']:.3f})",
        f"memory traffic an image: {results['memory_traffic_per_image'] / 1e6:,.0f} MB",
    ]
    for kind, traffic in results["collectives"].items():
        lines.append(
            f"{kind + ':':25s}{traffic['count']} a step, {traffic['bytes'] / 1e6:,.1f} MB on each "
            f"device, which sends {traffic['sent'] / 1e6:,.1f} MB"
        )
    return [*lines, f"compiled in {results['compile_s']:.0f} s"]


def _speed(results: Mapping[str, Any]) -> list[str]:
    bound = results["bound"]
    parts = ", ".join(
        f"{name} {1e3 * bound[f'{name}_s']:.1f}" for name in ("compute", "memory", "interconnect")
    )
    lines = [
        f"a step takes at least {1e3 * bound['step_s']:.1f} ms, limited by {bound['limit']} "
        f"(ms: {parts}); {results['peak_share_at_bound']:.0%} of the chip's peak",
    ]
    if results["peak_share_by_compiler"]:
        lines.append(f"by the compiler's estimate {results['peak_share_by_compiler']:.0%} of it")
    lines.append(
        f"{'for ' + format(results['total_steps'], ',') + ' steps':24s}"
        f"{'images/s/chip':>15s}{'hours':>10s}{'chip hours':>12s}"
    )
    for share, pace in results["pace"].items():
        lines.append(
            f"  {'at ' + format(float(share), '.0%') + ' of the bound':22s}"
            f"{pace['images_per_s_per_chip']:>15,.0f}{pace['hours']:>10,.1f}"
            f"{pace['chip_hours']:>12,.0f}"
        )
    return lines


def _gib(count: float) -> str:
    return f"{count / 2**30:.2f}"
