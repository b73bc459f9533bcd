"""What a compile check found, in words and numbers for people."""

from collections.abc import Mapping
from typing import Any

_KINDS = ("parameters", "optimizer", "teacher", "batch", "activations")


def report(found: Mapping[str, Any]) -> str:
    """The findings of :mod:`ddae_jax.compile_check`, in lines."""
    mesh = found["mesh"]
    lines = [
        f"{found['topology']}: {found['num_devices']} devices, data={mesh['data']} x "
        f"fsdp={mesh['fsdp']}; {found['batch_size']} images a step, {found['batch_per_device']} "
        "on each",
        _fits(found),
        "",
        *_memory(found),
    ]
    if "compile_s" in found:
        lines += ["", *_work(found)]
    if "bound" in found:
        lines += ["", *_speed(found)]
    if "largest_batch_per_device" in found:
        each = found["largest_batch_per_device"]
        total = each * found["num_devices"]
        lines += ["", f"largest batch that fits: {each} on each device, {total} in all"]
    return "\n".join(lines)


def _fits(found: Mapping[str, Any]) -> str:
    if found["fits"]:
        return "it fits"
    return (
        f"it does not fit: {found['why']}. Raise optimizer.micro_batches or mesh.fsdp, set "
        "model.rematerialization='full', or lower batch_size; --search finds the largest batch"
    )


def _memory(found: Mapping[str, Any]) -> list[str]:
    held, chip = found["bytes_per_device"], found["chip"]
    lines = [f"{'on each device':24s}{'GiB':>10s}"]
    lines += [f"  {kind:22s}{_gib(held[kind]):>10s}" for kind in _KINDS if kind in held]
    lines.append(f"  {'together':22s}{_gib(sum(held.values())):>10s}")
    if "memory_bytes" in chip:
        lines.append(f"  {'of a ' + chip['name']:22s}{_gib(chip['memory_bytes']):>10s}")
        usable = found.get("usable_bytes", chip["memory_bytes"])
        if usable < chip["memory_bytes"]:
            lines.append(
                f"  {'of which JAX takes':22s}{_gib(usable):>10s}  (XLA_PYTHON_CLIENT_MEM_FRACTION)"
            )
    return lines


def _work(found: Mapping[str, Any]) -> list[str]:
    flops = found["flops_per_image"]
    lines = [
        f"operations an image:     {flops['compiled'] / 1e9:.1f} GFLOP compiled, "
        f"{flops['model'] / 1e9:.1f} by the model ({flops['ratio']:.3f})",
        f"memory traffic an image: {found['memory_traffic_per_image'] / 1e6:,.0f} MB",
    ]
    for kind, traffic in found["collectives"].items():
        lines.append(
            f"{kind + ':':25s}{traffic['count']} a step, {traffic['bytes'] / 1e6:,.1f} MB on each "
            f"device, which sends {traffic['sent'] / 1e6:,.1f} MB"
        )
    return [*lines, f"compiled in {found['compile_s']:.0f} s"]


def _speed(found: Mapping[str, Any]) -> list[str]:
    bound = found["bound"]
    parts = ", ".join(
        f"{name} {1e3 * bound[f'{name}_s']:.1f}" for name in ("compute", "memory", "interconnect")
    )
    lines = [
        f"a step takes at least {1e3 * bound['step_s']:.1f} ms, limited by {bound['limit']} "
        f"(ms: {parts}); {found['peak_share_at_bound']:.0%} of the chip's peak",
    ]
    if found["peak_share_by_compiler"]:
        lines.append(f"by the compiler's estimate {found['peak_share_by_compiler']:.0%} of it")
    lines.append(
        f"{'for ' + format(found['total_steps'], ',') + ' steps':24s}"
        f"{'images/s/chip':>15s}{'hours':>10s}{'chip hours':>12s}"
    )
    for share, pace in found["pace"].items():
        lines.append(
            f"  {'at ' + format(float(share), '.0%') + ' of the bound':22s}"
            f"{pace['images_per_s_per_chip']:>15,.0f}{pace['hours']:>10,.1f}"
            f"{pace['chip_hours']:>12,.0f}"
        )
    return lines


def _gib(count: float) -> str:
    return f"{count / 2**30:.2f}"
