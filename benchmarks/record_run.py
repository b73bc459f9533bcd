"""Stores what a pretraining run measured: rate, waiting, memory, and k-NN accuracy on the way.

    python -m benchmarks.record_run WORKDIR NAME ["how it was run"]

Writes benchmarks/results/NAME.json from the run's config and records, with the machine that it is
called on: call it where the run was made.
"""

import sys

from benchmarks.environment import spread, store
from ddae_jax.config.schema import flatten
from ddae_jax.training.metrics import read_metrics
from ddae_jax.training.workdir import Workdir


def main(path: str, name: str, how: str = "") -> None:
    """Reads, prints and stores."""
    workdir = Workdir(path)
    records = read_metrics(workdir.metrics)
    last = records[-1]
    steady = [r for r in records if "images_per_s" in r][1:]  # the first one has the compilation
    config = flatten(workdir.read_config())
    result = {
        "how": how,
        "config": {k: v for k, v in config.items() if not k.startswith(("log.", "data.data_dir"))},
        "steps": last["step"],
        "epochs": last["epoch"],
        "images_per_s": spread([r["images_per_s"] for r in steady]),
        "data_wait_share": spread([r["data_wait_share"] for r in steady]),
        "peak_host_gib": last.get("peak_host_gib"),
        "peak_device_gib": last.get("peak_device_gib"),
        "knn": {
            key: value
            for record in records
            for key, value in record.items()
            if key in ("knn/untrained", "knn/raw_pixels", "knn/trained")
        },
        "knn_by_epoch": [
            [round(r["epoch"], 3), r["knn/trained"]] for r in records if "knn/trained" in r
        ],
        "first_and_last": {
            key: [next(r[key] for r in records if key in r), last[key]]
            for key in last
            if key.startswith(("beta/", "plain_loss/"))
        },
    }
    for key in ("steps", "images_per_s", "data_wait_share", "peak_host_gib", "knn", "knn_by_epoch"):
        print(f"{key}: {result[key]}")
    print(store(name, result))


if __name__ == "__main__":
    main(*sys.argv[1:])
