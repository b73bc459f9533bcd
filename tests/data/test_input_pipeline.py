"""The benchmark of the input pipeline on a few images: it runs, and its numbers add up."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import tiny

pytestmark = pytest.mark.xdist_group(
    "measured pipeline"
)  # the runs of a fixture, made in one process

SIDES = ("decode", "pipeline")


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """The stored result of one run with a worker process."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for number in range(4):
        pixels = rng.integers(0, 256, (300, 400, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.jpg")
    name = tmp_path_factory.mktemp("results") / "short"
    left_out = "--leave_out=crop,decode reduced,decode to array,torchvision,torchvision normalized"
    sizes = ("--rounds=2", "--images=8", "--batch_size=4", "--threads=1", "--workers=1")
    subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks.input_pipeline", f"--folder={folder}"),
            *(*sizes, left_out, f"--name={name}"),
        ],
        env=tiny.environment(),
        cwd=tiny.ROOT,
        check=True,
        timeout=300,
    )
    return json.loads(name.with_suffix(".json").read_text())


@pytest.mark.slow
def test_compares_every_side_with_every_other(stored):
    assert set(stored["one_core"]) == set(SIDES)
    for name, row in stored["one_core"].items():
        assert set(row["share_of"]) == set(SIDES) - {name}
        for rates in (row["images_per_cpu_s"], row["images_per_s"]):
            assert 1 < rates["min"] <= rates["median"] <= rates["max"] < 1e5


@pytest.mark.slow
def test_shares_are_of_the_rates_of_one_round(stored):
    """So the shares of two sides are the inverse of each other."""
    mine, its = (stored["one_core"][name]["share_of"] for name in ("pipeline", "decode"))
    assert mine["decode"]["max"] == pytest.approx(1 / its["pipeline"]["min"])
    assert mine["decode"]["min"] == pytest.approx(1 / its["pipeline"]["max"])


def test_workers_do_most_of_the_work(stored):
    row = {key: cell["median"] for key, cell in stored["workers"]["1"].items()}
    assert 0 < row["main_thread_cpu_ms_per_image"] < row["own_cpu_ms_per_image"]
    assert row["own_cpu_ms_per_image"] < row["workers_cpu_ms_per_image"]
    assert row["cores_that_keep_its_main_thread_busy"] > 1


def test_tells_the_machine_and_the_versions(stored):
    assert {"processor", "cores", "python", "numpy", "pillow", "grain"} <= set(stored["machine"])
    assert stored["images_a_round"] == 8
