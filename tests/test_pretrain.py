"""The command that pretrains, as people and schedulers meet it, in real processes."""

import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from PIL import Image

import tiny
from ddae_jax import pretrain
from ddae_jax.builders.data import build_source
from ddae_jax.config import pretrain_defaults, to_plain
from ddae_jax.config.defaults import defaults_of
from ddae_jax.config.earlier import EARLIER_DEFAULTS
from ddae_jax.config.schema import flatten
from ddae_jax.data import train_loader
from ddae_jax.data.disks import ReadFailed
from ddae_jax.hooks.knn import KnnHook
from ddae_jax.jobs import exits
from ddae_jax.jobs.job import DataSpec
from ddae_jax.jobs.start_checks import absolute, keep_as_stored
from ddae_jax.jobs.start_log import log_warnings
from ddae_jax.training.schedules import Schedule
from ddae_jax.training.workdir import Workdir
from undrawn import pictures_left_out


@pytest.fixture(autouse=True)
def _undrawn():
    """Runs in this process draw nothing; ``finished`` does."""
    with pictures_left_out():
        yield


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return tiny.write_config(tmp_path_factory.mktemp("config"), depth=2)


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    """A run that nobody disturbed."""
    workdir = tmp_path_factory.mktemp("runs") / "undisturbed"
    arguments = (f"--config={config}", f"--workdir={workdir}")
    done = tiny.run("pretrain", *arguments, as_for_users=True, draws=True)
    assert done.returncode == 0, done.stderr
    return workdir


def start(config, workdir, *arguments, **kind):
    log = open(f"{workdir}.log", "a")  # noqa: SIM115 - the process owns it
    return subprocess.Popen(
        tiny.command("pretrain", f"--config={config}", f"--workdir={workdir}", *arguments),
        env=tiny.environment(**kind),
        stderr=log,
    )


def give_programs(finished, workdir):
    """Puts what a run compiled where another one looks for it, beside what is there already."""
    programs = workdir / "compilation_cache"
    programs.mkdir(parents=True, exist_ok=True)
    for path in (finished / "compilation_cache").iterdir():
        if not (programs / path.name).exists():
            shutil.copy(path, programs)


def caught_by(pid):
    """The signals that a process has handlers for."""
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    (caught,) = re.findall(r"SigCgt:\s*(\w+)", status)
    return {number for number in signal.valid_signals() if int(caught, 16) >> (number - 1) & 1}


def wait_for_step(workdir, step, process, timeout_s=120):
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if process.poll() is not None:
            return
        path = workdir / "metrics.jsonl"
        if path.exists():
            lines = path.read_text().splitlines()
            if any(json.loads(line)["step"] >= step for line in lines[-1:] if line.endswith("}")):
                return
        time.sleep(0.01)
    raise AssertionError(f"no step {step} after {timeout_s} s")


def checkpoint_steps(workdir):
    return sorted(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())


def stored_state(workdir, step=None):
    step = step or checkpoint_steps(workdir)[-1]
    with ocp.PyTreeCheckpointer() as checkpointer:
        return checkpointer.restore((workdir / "checkpoints" / str(step) / "state").resolve())


def assert_bit_identical(one, other):
    one, other = (dict(jax.tree_util.tree_leaves_with_path(tree)) for tree in (one, other))
    assert one.keys() == other.keys()
    for path, leaf in one.items():
        np.testing.assert_array_equal(leaf, other[path], err_msg=jax.tree_util.keystr(path))


@pytest.mark.slow
@pytest.mark.xdist_group("undisturbed run")
def test_a_run_leaves_what_the_readme_promises(finished):
    records = tiny.records(finished)
    assert [r["step"] for r in records] == list(range(0, 45, 2))
    assert "rank/student" in records.pop(0)
    # The loss itself rises as features' weight does.
    assert records[-1]["plain_loss"] < records[0]["plain_loss"]
    places = [f"{o}/depth_{d}" for o in ("pixels", "features") for d in (1, 2)]
    wanted = {f"{kind}/{place}" for kind in ("loss", "plain_loss", "beta") for place in places}
    wanted |= {"step", "epoch", "progress", "loss", "gradient_norm", "learning_rate", "momentum"}
    wanted |= {"images_per_s", "data_wait_share", "corrupt_images"}
    assert wanted <= records[-1].keys()
    assert all(np.isfinite(value) for r in records for value in r.values())
    for place in places:  # beta moves while its objective counts, and only then
        moves = np.diff([r[f"beta/{place}"] for r in records])
        objective = place.partition("/")[0]
        weights = np.array([r[f"weight/{objective}"] for r in records])
        assert np.all(moves[weights[1:] > 0.01] > 0)
        assert np.all(moves[np.maximum(weights[:-1], weights[1:]) == 0] == 0)
        assert np.ptp(weights) == {"pixels": 0.5, "features": 1.0}[objective]
    assert json.loads((finished / "config.json").read_text())["model"]["size"] == "micro"
    assert checkpoint_steps(finished)[-1] == 44
    assert len(checkpoint_steps(finished)) == 2
    assert (finished / "report.html").read_text().count("data:image/png;base64") >= 5
    assert {p.stem for p in (finished / "figures").glob("*.png")} >= {"beta", "loss", "supervision"}
    assert list((finished / "tensorboard").glob("events.*"))


@pytest.mark.slow
@pytest.mark.xdist_group("undisturbed run")
def test_killed_at_random_moments_and_restarted_it_ends_bit_identical(config, finished, tmp_path):
    seed = random.SystemRandom().randrange(2**32)
    print("moments drawn with seed", seed)
    moments = random.Random(seed)
    workdir = tmp_path / "killed"
    process = start(config, workdir, as_for_users=True)
    time.sleep(moments.uniform(1, 8))  # while it starts: builds, claims, compiles, ...
    process.kill()
    process.wait()
    give_programs(finished, workdir)
    for step in sorted(moments.sample(range(2, 43), 2)):
        process = start(config, workdir, as_for_users=True)
        wait_for_step(workdir, step, process)
        time.sleep(moments.random() * 0.2)
        process.kill()
        process.wait()
    arguments = [f"--config={config}", f"--workdir={workdir}"]
    last = tiny.run("pretrain", *arguments, as_for_users=True)
    assert last.returncode == 0, last.stderr
    assert_bit_identical(stored_state(workdir, 44), stored_state(finished, 44))
    numbers, undisturbed = tiny.records(workdir), tiny.records(finished)
    assert [r["step"] for r in numbers] == [r["step"] for r in undisturbed]
    assert [r.get("loss") for r in numbers] == [r.get("loss") for r in undisturbed]


@pytest.mark.slow
@pytest.mark.xdist_group("undisturbed run")
def test_sigterm_saves_the_running_step_and_the_same_command_continues(config, finished, tmp_path):
    workdir = tmp_path / "stopped"
    rarely = "--config.checkpoint.every_epochs=10"
    give_programs(finished, workdir)
    process = start(config, workdir, rarely, as_for_users=True)
    wait_for_step(workdir, 6, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 0
    last_record = tiny.records(workdir)[-1]["step"]
    assert checkpoint_steps(workdir) == [last_record]
    assert 6 <= last_record < 44
    assert re.search(r">\s*stopped\s*<", (workdir / "report.html").read_text())
    compiled = list((workdir / "compilation_cache").glob("jit_train_step*"))
    arguments = [f"--config={config}", f"--workdir={workdir}"]
    again = tiny.run("pretrain", *arguments, as_for_users=True)
    assert again.returncode == 0, again.stderr
    # The undisturbed run compiled it, neither the stopped one nor the continued one did so again.
    assert len(compiled) == 1
    assert list((workdir / "compilation_cache").glob("jit_train_step*")) == compiled
    assert f"continuing from the checkpoint of step {last_record}" in again.stderr
    assert_bit_identical(stored_state(workdir, 44), stored_state(finished, 44))


@pytest.mark.slow
def test_a_signal_to_the_whole_group_is_no_error_of_the_workers(config, tmp_path):
    workdir = tmp_path / "stopped"
    options = [f"--config={config}", f"--workdir={workdir}", "--config.data.num_workers=2"]
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(
            tiny.command("pretrain", *options, *tiny.SIMPLEST, "--config.epochs=1000"),
            env=tiny.environment(),
            stderr=log,
            start_new_session=True,
        )
        wait_for_step(workdir, 4, process)
        os.killpg(process.pid, signal.SIGTERM)
        assert process.wait(timeout=60) == 0
    said = (tmp_path / "log").read_text()
    assert "Traceback" not in said, said
    assert checkpoint_steps(workdir)[-1] == tiny.records(workdir)[-1]["step"]


@pytest.mark.slow
def test_a_corrupt_image_is_skipped_and_named_and_other_data_is_refused_unless_asked_for(
    config, photos, tmp_path, capsys
):
    workdir = tmp_path / "run"
    arguments = [
        f"--config={config}",
        f"--workdir={workdir}",
        f"--config.data.data_dir={photos}",
        "--config.data.max_corrupt_share=0.1",
        *FROM_FOLDER,
        *tiny.SIMPLEST,
    ]
    assert status([*arguments, "--config.epochs=1"]) == 0
    assert tiny.records(workdir)[-1]["corrupt_images"] == 1
    assert capsys.readouterr().err.count("a/0.png") == 1
    assert "Unreadable images" in (workdir / "report.html").read_text()

    (photos / "a" / "2.png").unlink()
    assert status([*arguments, "--config.epochs=1"]) == 1
    refused = capsys.readouterr().err
    assert "error: the training data is not what the run was trained on" in refused
    assert "40 examples" in refused
    assert "39 examples" in refused
    assert status([*arguments, "--config.epochs=2", "--allow_config_changes"]) == 0
    assert "the training data has changed" in capsys.readouterr().err
    # What was compiled is where the environment says, not in the workdir.
    assert list(pathlib.Path(os.environ["TEST_PROGRAMS"]).glob("jit_train_step*-cache"))
    assert not (workdir / "compilation_cache").exists()


def test_a_stop_before_training_ends_at_once_and_writes_nothing(config, tmp_path, monkeypatch):
    def asked_to_stop(*_):
        signal.raise_signal(signal.SIGTERM)
        raise AssertionError("the stop was not noticed")

    monkeypatch.setattr(pretrain, "build_source", asked_to_stop)
    workdir = tmp_path / "never"
    assert pretrain.main([f"--config={config}", f"--workdir={workdir}"]) == 0
    monkeypatch.setenv(exits.STOPPED_STATUS, "75")
    assert pretrain.main([f"--config={config}", f"--workdir={workdir}"]) == 75
    assert not workdir.exists()


@pytest.mark.slow
def test_a_stop_while_the_untrained_network_is_measured_ends_at_once(config, tmp_path, monkeypatch):
    def asked_to_stop(*_):
        signal.raise_signal(signal.SIGTERM)
        raise AssertionError("the stop was not noticed")

    monkeypatch.setattr(KnnHook, "baselines", asked_to_stop)
    workdir = tmp_path / "run"
    arguments = [f"--config={config}", f"--workdir={workdir}"]
    assert pretrain.main([*arguments, "--config.evaluation.knn_every_epochs=1"]) == 0
    assert not list((workdir / "checkpoints").iterdir())


@pytest.mark.slow
def test_baselines_are_computed_once_recorded_and_computed_anew_where_they_would_differ(
    config, tmp_path
):
    workdir = tmp_path / "run"

    def recorded(*arguments):
        command = [f"--config={config}", f"--workdir={workdir}", "--config.epochs=0.36"]
        assert pretrain.main([*command, *tiny.SIMPLEST, *arguments]) == 0
        wanted = ("step", "knn/untrained")
        return [
            tuple(r[name] for name in wanted) for r in tiny.records(workdir) if "knn/untrained" in r
        ]

    assert recorded() == []  # k-NN is off
    watched = "--config.evaluation.knn_every_epochs=1"
    [(step, untrained)] = recorded(watched)
    assert step == 8
    assert untrained > 0.1
    kept = json.loads((workdir / "baselines.json").read_text())
    kept["values"]["knn/untrained"] = 0.123
    (workdir / "baselines.json").write_text(json.dumps(kept))
    assert recorded(watched) == [(8, untrained), (8, 0.123)]
    again = recorded(watched, "--config.evaluation.k=200")
    assert len(again) == 3
    assert again[-1][1] not in (0.123, untrained)


@pytest.mark.slow
@pytest.mark.xdist_group("undisturbed run")
def test_started_again_a_complete_run_says_so_and_changes_nothing(
    config, finished, monkeypatch, capsys
):
    monkeypatch.setenv(exits.STOPPED_STATUS, "75")  # it was not stopped
    before = (finished / "metrics.jsonl").read_text()
    assert status([f"--config={config}", f"--workdir={finished}"]) == 0
    assert "complete" in capsys.readouterr().err
    assert (finished / "metrics.jsonl").read_text() == before


@pytest.mark.slow
def test_two_runs_in_one_workdir_the_second_is_refused(config, tmp_path, capsys):
    workdir = tmp_path / "shared"
    first = start(config, workdir, *tiny.SIMPLEST, "--config.epochs=1000")
    wait_for_step(workdir, 2, first)
    second = [f"--config={config}", f"--workdir={workdir}", *tiny.SIMPLEST, "--config.epochs=1000"]
    assert status(second) == 2
    assert first.poll() is None
    first.terminate()
    first.wait()
    told = capsys.readouterr().err
    assert f"another run (process {first.pid}) is writing to {workdir}" in told


def test_a_run_that_came_and_went_while_this_one_prepared_is_noticed(
    config, tmp_path, monkeypatch, capsys
):
    workdir = tmp_path / "run"
    make = build_source

    def meanwhile(*arguments):
        other = pretrain_defaults()
        other.seed = 7
        checkpoint = workdir / "checkpoints" / "4"
        checkpoint.mkdir(parents=True)
        (checkpoint / "_CHECKPOINT_METADATA").touch()
        (workdir / "config.json").write_text(json.dumps(to_plain(other)))
        return make(*arguments)

    monkeypatch.setattr(pretrain, "build_source", meanwhile)
    assert status([f"--config={config}", f"--workdir={workdir}"]) == 2
    assert "seed: 7 in the workdir, 0 given" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_without_a_checkpoint_starts_over_with_any_config(config, tmp_path):
    workdir = tmp_path / "run"
    arguments = [f"--config={config}", f"--workdir={workdir}", "--config.epochs=0.36"]
    arguments += tiny.SIMPLEST
    workdir.mkdir()
    other = pretrain_defaults()
    (workdir / "config.json").write_text(json.dumps(to_plain(other)))
    assert pretrain.main(arguments) == 0
    assert json.loads((workdir / "config.json").read_text())["model"]["size"] == "micro"


def test_data_is_found_from_elsewhere_later(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert absolute("photos") == str(tmp_path / "photos")
    assert absolute("~/photos") == os.path.expanduser("~/photos")
    assert absolute("gs://bucket/tfds") == "gs://bucket/tfds"
    assert absolute("") == ""


@pytest.mark.slow
def test_a_stop_while_it_starts_ends_well_at_any_moment(config, tmp_path):
    number = random.SystemRandom().choice([signal.SIGTERM, signal.SIGINT])
    moment = random.SystemRandom().uniform(0, 4)
    workdir = tmp_path / "run"
    watched = "--config.evaluation.knn_every_epochs=1"
    process = start(config, workdir, watched, as_for_users=True)
    while process.poll() is None and signal.SIGTERM not in caught_by(process.pid):
        time.sleep(0.01)  # until its handlers are there
    time.sleep(moment)
    process.send_signal(number)
    wanted = 130 if number == signal.SIGINT else 0  # of Ctrl-C, as of any command
    log = (tmp_path / "run.log").read_text
    assert process.wait(timeout=60) == wanted, (number, moment, log())


@pytest.mark.slow  # the run that it needs is compiled as for users
@pytest.mark.xdist_group("undisturbed run")
def test_a_contradicting_config_is_refused_by_key_unless_asked_for(config, finished, capsys):
    arguments = [f"--config={config}", f"--workdir={finished}", "--config.mask.ratio=0.75"]
    arguments += ["--config.epochs=3", "--config.log.every_steps=4"]
    assert status(arguments) == 2
    message = capsys.readouterr().err
    assert "mask.ratio: 0.5 in the workdir, 0.75 given" in message
    assert "epochs: 2.0 in the workdir, 3.0 given" in message
    assert "log.every_steps" not in message
    assert json.loads((finished / "config.json").read_text())["mask"]["ratio"] == 0.5


@pytest.mark.slow
def test_a_kill_between_the_last_checkpoint_and_its_record_loses_nothing(tmp_path, capsys):
    """Neither the loss nor the k-NN accuracy of that step, in the records and in the report."""
    config, workdir = tiny.write_config(tmp_path, depth=2), tmp_path / "run"
    arguments = [
        f"--config={config}",
        f"--workdir={workdir}",
        "--config.epochs=0.36",
        "--config.evaluation.knn_every_epochs=0.2",
        "--config.evaluation.max_examples=64",
        *tiny.SIMPLEST,
    ]
    assert status(arguments) == 0
    before = tiny.records(workdir)
    assert [r["step"] for r in before if "knn/trained" in r] == [4, 8]
    lines = (workdir / "metrics.jsonl").read_text().splitlines(keepends=True)
    (workdir / "metrics.jsonl").write_text("".join(lines[:-1]))
    capsys.readouterr()
    for _ in range(2):  # the second time there is nothing to be made up for
        assert status(arguments) == 0
        told = capsys.readouterr().err
        assert tiny.records(workdir) == before
        shown = before[-1]["knn/trained"]
        assert f"k-NN accuracy: trained {shown:.1%}" in told
        assert f"{shown:.1%}" in (workdir / "report.html").read_text()


@pytest.mark.slow
def test_a_run_keeps_its_batch_size_and_is_told_how_it_goes_on(tmp_path, capsys):
    workdir = tiny.copy_of_short_run(tmp_path / "run")  # 0.36 epochs of 22 steps of 64
    config = tiny.write_config(tmp_path)
    arguments = [f"--config={config}", f"--workdir={workdir}", "--config.log.tensorboard=false"]
    arguments.append("--allow_config_changes")

    def refused(*changes, expected_status):
        capsys.readouterr()
        assert status([*arguments, *changes]) == expected_status
        return capsys.readouterr().err

    told = refused("--config.epochs=0.36", "--config.batch_size=32", expected_status=2)
    assert "batch_size: 64 in the workdir, 32 given" in told
    assert "A run keeps its batch_size" in told
    assert "optimizer.micro_batches=2" in told
    told = refused("--config.epochs=0.2", expected_status=1)
    assert "this run has 0.3636 epochs behind it (step 8)" in told
    assert "epochs=0.2, of 22 steps each, are over at step 4" in told
    assert json.loads((workdir / "config.json").read_text())["epochs"] == 0.36
    assert status([*arguments, "--config.epochs=0.5"]) == 0
    told = capsys.readouterr().err
    assert "continuing from the checkpoint of step 8: epoch 0.3636 of 0.5, learning rate " in told
    assert "its 8 steps were 0.3636 epochs of 22 steps each, of 8 steps in all; they are" in told
    assert "of 11 in all" in told
    assert [record["step"] for record in tiny.records(workdir)] == [0, 2, 4, 6, 8, 10, 11]


@pytest.mark.slow  # the run that it needs is compiled as for users
@pytest.mark.xdist_group("undisturbed run")
def test_another_model_is_refused_and_leaves_the_workdir_as_it_was(config, finished, capsys):
    before = (finished / "config.json").read_text()
    arguments = [f"--config={config}", f"--workdir={finished}", "--config.model.size=S"]
    assert status([*arguments, "--allow_config_changes"]) == 1
    told = capsys.readouterr().err
    assert "is of another model" in told
    assert "params/encoder" in told
    assert "Traceback" not in told
    assert (finished / "config.json").read_text() == before


@pytest.mark.slow
@pytest.mark.parametrize("version", [1, 6])
def test_a_run_that_was_stored_by_earlier_code_goes_on_as_it_did_then(version, tmp_path):
    """Betas, losses and norms of its steps 5 to 8, which the code of then has taken too."""
    stored = tiny.ROOT / "tests" / "golden" / f"run_of_version_{version}"
    workdir = tmp_path / "run"
    shutil.unpack_archive(stored.with_suffix(".zip"), workdir)
    then = [record for record in tiny.records(workdir) if "loss" in record]
    assert checkpoint_steps(workdir) == [4]
    assert status([f"--config={stored.with_suffix('.py')}", f"--workdir={workdir}"]) == 0
    # Of step 4, which had no measure of collapse in version 1, there is another record.
    now = [record for record in tiny.records(workdir) if "loss" in record]
    assert [record["step"] for record in now] == [record["step"] for record in then]
    unlike = {"images_per_s", "data_wait_share", "peak_host_gib"}
    compared = 0
    for before, after in zip(then[4:], now[4:], strict=True):
        for name in before.keys() - unlike:
            np.testing.assert_allclose(after[name], before[name], rtol=1e-4, err_msg=name)
            compared += 1
    assert compared > 80
    # In version 1 it moves by the absolute gradient, five times as far.
    name, way = {1: ("beta/features/depth_3", 0.5), 6: ("beta/pixels/depth_3", 0.25)}[version]
    assert now[-1][name] > now[3][name] + way


FIRST_KEYS = json.loads((tiny.ROOT / "tests" / "golden" / "defaults_1.json").read_text())


def store_as_before(workdir):
    """Gives a run's config the shape that it had when the defaults had no version yet."""
    stored = json.loads((workdir / "config.json").read_text())
    of_before = {}
    for key, value in flatten(stored).items():
        section, _, name = key.rpartition(".")
        if key in FIRST_KEYS["pretrain"]:
            (of_before.setdefault(section, {}) if section else of_before)[name] = value
    (workdir / "config.json").write_text(json.dumps(of_before))


@pytest.mark.slow
def test_a_run_that_began_with_other_defaults_is_continued_by_the_same_command(tmp_path, capsys):
    file = tiny.write_config(tmp_path, depth=2)
    today = file.read_text()
    all_since = {
        k: v
        for _, t in sorted(EARLIER_DEFAULTS.items(), reverse=True)
        for k, v in t["pretrain"].items()
    }
    of_before = f"config.update_from_flattened_dict({all_since})"
    file.write_text(today.replace("    return config", f"    {of_before}\n    return config"))
    # Which today's defaults would not go with.
    given = ["--config.model.relative_positions=shared", "--config.epochs=0.36", *tiny.SIMPLEST]
    undisturbed, workdir = tmp_path / "undisturbed", tmp_path / "run"
    assert status([f"--config={file}", f"--workdir={undisturbed}", *given]) == 0

    shutil.copytree(undisturbed, workdir)
    shutil.rmtree(workdir / "checkpoints" / "8")
    assert checkpoint_steps(workdir) == [4]
    store_as_before(workdir)
    others = (
        "config.model.encoder_input = 'visible'",
        "config.decoder.kind = 'cross'",
        "config.optimizer.weight_decay = 0.5",
        "config.log.every_steps = 4",
        "return config",
    )
    file.write_text(today.replace("    return config", "\n".join(f"    {o}" for o in others)))
    command = [f"--config={file}", f"--workdir={workdir}", *given]
    capsys.readouterr()
    assert status([*command, "--config.mask.ratio=0.75"]) == 2
    told = capsys.readouterr().err
    assert "mask.ratio: 0.5 in the workdir, 0.75 given\n" in told
    assert "weight_decay: " not in told

    assert status(command) == 0
    told = capsys.readouterr().err
    (line,) = (line for line in told.splitlines() if "defaults have changed since" in line)
    assert "continuing with the stored config" in line
    assert "model.encoder_input='full' (now 'visible')" in line
    assert "decoder.kind='self' (now 'cross')" in line
    assert "optimizer.weight_decay=0.05 (now 0.5)" in line
    assert "log.every_steps" not in line
    assert "continuing from the checkpoint of step 4" in told
    assert_bit_identical(stored_state(workdir, 8), stored_state(undisturbed, 8))
    stored = json.loads((workdir / "config.json").read_text())
    assert (stored["defaults_version"], stored["model"]["encoder_input"]) == (1, "full")
    assert status(command) == 0  # and once more
    assert "defaults have changed since" in capsys.readouterr().err


def test_what_init_from_tells_is_no_default_that_has_changed(tmp_path):
    config = defaults_of("pretrain", 1)
    config.init_from = "runs/earlier"
    config.model.size, config.data.mean, config.optimizer.b2 = "S", (0.5, 0.5, 0.5), 0.5
    checkpoint = tmp_path / "checkpoints" / "4"
    checkpoint.mkdir(parents=True)
    (checkpoint / "_CHECKPOINT_METADATA").touch()
    (tmp_path / "config.json").write_text(json.dumps(to_plain(config)))
    store_as_before(tmp_path)
    now = pretrain_defaults()
    now.init_from = "runs/moved"
    told = keep_as_stored(now, Workdir(tmp_path), ())
    assert told.startswith("continuing with the stored config, as defaults have changed since (")
    assert "optimizer.b2=0.5 (now 0.95)" in told
    for key in ("model.size", "data.mean", "init_from"):
        assert key not in told
    assert (now.model.size, now.init_from) == ("S", "runs/moved")


@pytest.mark.slow
def test_a_loss_that_is_no_number_stops_the_run_before_it_is_saved(config, tmp_path, capsys):
    workdir = tmp_path / "diverging"
    arguments = (
        f"--config={config}",
        f"--workdir={workdir}",
        "--config.optimizer.learning_rate=1e18",
        "--config.optimizer.clip_norm=0",
        "--config.checkpoint.every_epochs=0.04",
        *tiny.SIMPLEST,
    )
    assert status(arguments) == 1
    told = capsys.readouterr().err
    assert "Traceback" not in told
    assert "error: step " in told
    good = checkpoint_steps(workdir)[-1]
    assert f"the last good checkpoint is that of step {good}" in told
    for leaf in jax.tree.leaves(stored_state(workdir, good)["params"]):
        assert np.isfinite(leaf).all()
    for _ in range(2):  # nothing has changed
        assert status(arguments) == 70
        told = capsys.readouterr().err
        assert f"continuing from the checkpoint of step {good}" in told
        assert "It went wrong at this step the last time too" in told
        assert "started again, it will once more. Change something first" in told
    assert status([*arguments, "--config.optimizer.b2=0.9", "--allow_config_changes"]) == 1
    assert "the last time too" not in capsys.readouterr().err


def status(arguments):
    try:
        return pretrain.main(arguments)
    except SystemExit as ended:
        return ended.code


BAD_INPUT = {
    "--config.model.patchsize=4": "did you mean config.model.patch_size",
    "--config.model.patch_size=four": "config.model.patch_size='four' is of the wrong type",
    "--config.mask.ratio=1.2": "mask.ratio=1.2; it is the hidden share",
    "--config.mask.ratio=0.99": "leaves no visible patch",
    "--config.model.image_size=(18,16)": "not divisible by model.patch_size=4",
    "--config.model.patch_size=1": "a patch of one value cannot be normalised",
    "--config.supervision.depths=(1,)": "the last one must be 2",
    "--config.supervision.depths=(2,9)": "at most 2, the model's depth",
    "--config.supervision.mode=deeper": "did you mean 'deep'",
    "--config.batch_size=63": "not divisible by the 8 devices",
    "--config.method=ddea": "did you mean 'ddae'",
    "--config.data.source=digit": "did you mean 'digits'",
    "--config.epochs=0": "epochs=0.0; it is more than 0",
    "--config.epochs=1e300": "epochs=1e+300 of 22 steps are 2.2e+301 steps; a run has at most",
    "--config.model=B": "config.model is a section; its keys are model.activation, ",
    "--config.supervision.beta_init=-3": "lies outside supervision.beta_range=(-2.0, 2.0)",
    "--no_such_flag=1": "no_such_flag",
}


@pytest.mark.parametrize("argument", BAD_INPUT)
def test_bad_input_is_explained_before_anything_is_written(argument, config, tmp_path, capsys):
    workdir = tmp_path / "never"
    assert status([f"--config={config}", f"--workdir={workdir}", argument]) == 2
    message = capsys.readouterr().err
    assert BAD_INPUT[argument] in message
    assert message.startswith("error: ")
    assert not workdir.exists()


def test_keys_without_effect_are_named_once_at_the_start(caplog):
    config = pretrain_defaults()
    config.model.size = "Ti"
    config.supervision.mode = "last"
    config.supervision.depths = (6, 12)
    job = pretrain.PretrainJob(config)
    program = job.program(Schedule(2, 200), DataSpec())
    with caplog.at_level("WARNING", logger="ddae_jax"):
        log_warnings(config, job.warnings(program))
    assert [record.getMessage() for record in caplog.records] == [
        "supervision.depths=(6, 12) is ignored: supervision.mode='last' reads out the last block "
        "alone"
    ]


def test_missing_data_is_explained_before_anything_is_written(config, tmp_path, capsys):
    empty = tmp_path / "empty"
    empty.mkdir()
    for data, reason in (
        (["--config.data.source=folder", f"--config.data.data_dir={empty}"], "no image in"),
        (["--config.data.source=folder", "--config.data.data_dir=/no/such"], "no folder /no/such"),
        (["--config.data.source=tfds", "--config.data.name=cifr10"], "did you mean 'cifar10'"),
    ):
        workdir = tmp_path / "never"
        assert status([f"--config={config}", f"--workdir={workdir}", *data]) == 2
        assert reason in capsys.readouterr().err
        assert not workdir.exists()


@pytest.mark.parametrize("given", ["", "-1", "256", "later"])
def test_a_status_that_no_process_can_end_with_is_refused(
    config, tmp_path, given, monkeypatch, capsys
):
    monkeypatch.setenv(exits.STOPPED_STATUS, given)
    assert status([f"--config={config}", f"--workdir={tmp_path / 'never'}"]) == 2
    assert f"{exits.STOPPED_STATUS}={given}; an exit status is" in capsys.readouterr().err


def test_a_workdir_with_other_files_is_refused(config, tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("years of work")
    assert status([f"--config={config}", f"--workdir={tmp_path}"]) == 2
    assert "thesis.tex" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["thesis.tex"]


@pytest.fixture
def photos(tmp_path):
    """Forty images of many sizes in two folders, one of which cannot be read."""
    noise = np.random.default_rng(0)
    for index in range(40):
        path = tmp_path / "photos" / "ab"[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        size = (*noise.integers(10, 60, 2), 3)
        Image.fromarray(noise.integers(0, 256, size, dtype=np.uint8)).save(path)
    (tmp_path / "photos" / "a" / "0.png").write_bytes(b"\x89PNG\r\n\x1a\n but no image")
    return tmp_path / "photos"


FROM_FOLDER = [
    "--config.data.source=folder",
    "--config.data.channels=3",
    "--config.data.mean=(0.5,0.5,0.5)",
    "--config.data.std=(0.5,0.5,0.5)",
    "--config.batch_size=8",
]


@pytest.mark.slow
def test_too_many_corrupt_images_stop_the_run(config, photos, tmp_path, capsys):
    arguments = [
        f"--config={config}",
        f"--workdir={tmp_path / 'run'}",
        f"--config.data.data_dir={photos}",
        *FROM_FOLDER,
        *tiny.SIMPLEST,
    ]
    assert status(arguments) == 1
    told = capsys.readouterr().err
    assert "1 of 40 images cannot be decoded" in told
    assert "a/0.png" in told
    assert "Traceback" not in told


@pytest.mark.slow
def test_a_stop_while_reading_hangs_and_a_disk_that_fails_lose_no_finished_step(
    config, tmp_path, monkeypatch, capsys
):
    workdir, over = tmp_path / "run", threading.Event()
    arguments = [f"--config={config}", f"--workdir={workdir}", *tiny.SIMPLEST]
    arguments.append("--config.checkpoint.every_epochs=1")
    read = train_loader._LoadTrainBatch.__call__

    def hang(self, number, indices):
        if number == 10:
            while (
                not (workdir / "metrics.jsonl").exists() or tiny.records(workdir)[-1]["step"] < 10
            ):
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGTERM)
            over.wait(60)
        return read(self, number, indices)

    monkeypatch.setattr(train_loader._LoadTrainBatch, "__call__", hang)
    try:
        assert status(arguments) == 0
    finally:
        over.set()
    assert checkpoint_steps(workdir) == [10]

    def fail(self, number, indices):
        if number == 13:
            raise ReadFailed("/mnt/7.png cannot be read: Input/output error")
        return read(self, number, indices)

    monkeypatch.setattr(train_loader._LoadTrainBatch, "__call__", fail)
    assert status(arguments) == 1
    told = capsys.readouterr().err
    assert "continuing from the checkpoint of step 10" in told
    assert "no batch can be read after step 13, which is saved" in told
    assert told.endswith("error: /mnt/7.png cannot be read: Input/output error\n")
    assert checkpoint_steps(workdir) == [10, 13]


@pytest.mark.slow
@pytest.mark.skipif(
    not (tiny.SHARED_DATA / "tfds" / "cifar10").is_dir(), reason="../shared/data/tfds is not here"
)
def test_cifar10_runs_from_the_folder_given_without_tensorflow(tmp_path):
    program = (
        "import sys, undrawn; pretrain = undrawn.load('pretrain'); "
        "from ddae_jax.models import vit; vit.SIZES['micro'] = vit.Size(16, 1, 2); "
        "status = pretrain.main(sys.argv[1:]); "
        "print('status', status, 'tensorflow', 'tensorflow' in sys.modules)"
    )
    environment = tiny.environment()
    environment["PYTHONPATH"] += f":{tiny.ROOT / 'tests'}"
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            program,
            f"--config={tiny.ROOT / 'configs' / 'cifar10_ddae.py'}",
            f"--workdir={tmp_path / 'run'}",
            f"--config.data.data_dir={tiny.SHARED_DATA / 'tfds'}",
            "--config.model.size=micro",
            "--config.data.train_split=train[:2000]",
            "--config.data.test_split=test[:500]",
            "--config.epochs=0.05",
            "--config.batch_size=32",
            "--config.evaluation.max_examples=64",
            "--config.optimizer.warmup_epochs=0.02",
            "--config.supervision.depths=1",
        ],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert "status 0 tensorflow False" in done.stdout, done.stderr
    last = tiny.records(tmp_path / "run")[-1]
    assert {"knn/trained", "loss/pixels/depth_1"} <= last.keys()
