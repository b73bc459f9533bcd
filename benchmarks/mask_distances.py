"""How far hidden patches lie from visible ones, by kind and ratio of the mask, on a 14x14 grid.

    python -m benchmarks.mask_distances

Prints the table of docs/method.md and writes benchmarks/results/mask_distances.json.
"""

import functools

import jax
import numpy as np

from benchmarks.environment import store
from ddae_jax import block_mask, distance_map, random_mask
from ddae_jax.masking import num_masked_patches

GRID = (14, 14)
IMAGES = 4096
MASKS = [
    ("random", random_mask, 0.6),
    ("random", random_mask, 0.75),
    ("random", random_mask, 0.9),
    ("block", block_mask, 0.4),
    ("block", block_mask, 0.6),
    ("block", block_mask, 0.75),
]


def main() -> None:
    """Measures, prints and stores."""
    rows = []
    print(
        "| mask | hidden | at distance 1 | at most 2 | mean of the largest |\n|---|---|---|---|---|"
    )
    for kind, sample, ratio in MASKS:
        num_masked = num_masked_patches(GRID, ratio)
        mask = jax.jit(functools.partial(sample, batch=IMAGES, grid=GRID, num_masked=num_masked))(
            jax.random.key(0)
        )
        distance = np.asarray(distance_map(mask, GRID))
        hidden = distance[np.asarray(mask)]
        row = {
            "mask": kind,
            "ratio": ratio,
            "at_distance_1": float((hidden == 1).mean()),
            "at_most_2": float((hidden <= 2).mean()),
            "mean_largest": float(distance.max(axis=1).mean()),
        }
        rows.append(row)
        print(
            f"| {kind} | {ratio:.0%} | {row['at_distance_1']:.0%} | {row['at_most_2']:.0%} | "
            f"{row['mean_largest']:.1f} |"
        )
    print(store("mask_distances", {"grid": GRID, "images": IMAGES, "masks": rows}))


if __name__ == "__main__":
    main()
