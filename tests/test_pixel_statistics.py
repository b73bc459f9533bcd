"""The command that computes mean and deviation, and the run that takes what it prints."""

import json

import numpy as np
import pytest

import tiny
from ddae_jax import pixel_statistics, pretrain
from undrawn import pictures_left_out


@pytest.fixture
def bands(tmp_path):
    """Images of four channels, the last of which is the same everywhere."""
    folder = tmp_path / "bands"
    folder.mkdir()
    values = np.random.default_rng(0).integers(0, 256, (16, 4, 16, 16), np.uint8)
    values[:, 3] = 51
    for number, image in enumerate(values):
        np.save(folder / f"{number}.npy", image)
    return folder, values


@pytest.mark.slow
def test_what_it_prints_is_what_a_run_of_many_channels_asks_for(bands, tmp_path, capsys):
    folder, values = bands
    arguments = [f"--config={tiny.write_config(tmp_path, depth=1)}", *tiny.SIMPLEST]
    arguments += ["--config.data.source=folder", f"--config.data.data_dir={folder}"]
    arguments += ["--config.data.channels=4", "--config.batch_size=8", "--config.epochs=1"]
    run = [*arguments, f"--workdir={tmp_path / 'run'}"]
    with pytest.raises(SystemExit):
        pretrain.main(run)
    assert (
        "data.channels=4 asks for 4 values in each of data.mean and data.std: set both; python -m "
        "ddae_jax.pixel_statistics, with the same --config arguments, computes them of the images"
    ) in capsys.readouterr().err

    assert pixel_statistics.main(arguments) == 0
    told, given, result = capsys.readouterr().out.splitlines()
    assert told == "of 16 of 16 images, as values are divided by 255:"
    found = json.loads(result)
    np.testing.assert_allclose(found["mean"], values.mean((0, 2, 3)) / 255, atol=1e-4)
    assert found["mean"][3] == 0.2
    assert found["std"][3] == 0.001
    with pictures_left_out():
        assert pretrain.main([*run, *given.split()]) == 0
    assert np.isfinite(tiny.records(tmp_path / "run")[-1]["loss"])


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--limit=0", "--limit=0; at least 1 image"),
        ("--config.data.source=digits", "data.channels=4; images are grey (1) or RGB (3)"),
    ],
)
def test_what_makes_no_sense_is_refused(bands, tmp_path, capsys, argument, message):
    folder, _ = bands
    arguments = [f"--config={tiny.write_config(tmp_path)}", f"--config.data.data_dir={folder}"]
    arguments += ["--config.data.source=folder", "--config.data.channels=4", argument]
    with pytest.raises(SystemExit) as ended:
        pixel_statistics.main(arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
