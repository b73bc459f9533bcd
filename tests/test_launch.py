"""The README's commands, as shell scripts."""

import json
import shutil
import subprocess
import sys

import pytest

import tiny


@pytest.mark.slow
@pytest.mark.skipif(
    not (tiny.ROOT / ".venv" / "installed").exists(),
    reason="launch/test.sh makes the environment that quickstart.sh shares; run the suite with it",
)
def test_quickstart_shortened_learns_and_reports(tmp_path):
    workdir = tmp_path / "run"
    done = subprocess.run(
        [
            "bash",
            str(tiny.ROOT / "launch" / "quickstart.sh"),
            f"--workdir={workdir}",
            "--config.epochs=2",
            "--config.model.size=nano",
            "--config.model.image_size=16,16",
            "--config.optimizer.warmup_epochs=0.5",
            "--config.targets.feature_weight=0",
        ],
        cwd=tmp_path,  # from anywhere
        env=tiny.environment(),
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert records[-1]["loss"] < 0.8 * records[1]["loss"]
    assert {"knn/untrained", "knn/raw_pixels"} <= records[0].keys()
    assert "knn/trained" in records[-1]
    assert "report: " in done.stderr
    names = ["run", "run_finetuned", "run_from_scratch"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    top1 = {
        name: json.loads((tmp_path / name / "scores.json").read_text())["top1"]
        for name in names[1:]
    }
    assert done.stdout.splitlines()[-1] == (
        f"5 labels a class: {top1['run_finetuned']:.1%} of test images right after pretraining, "
        f"{top1['run_from_scratch']:.1%} from scratch; report: {workdir}/report.html"
    )


@pytest.mark.parametrize("script", ["environment.sh", "quickstart.sh", "test.sh"])
def test_scripts_parse(script):
    assert subprocess.run(["bash", "-n", str(tiny.ROOT / "launch" / script)]).returncode == 0


@pytest.mark.slow
def test_an_environment_without_pip_or_without_its_python_is_made_anew(tmp_path):
    clone = tmp_path / "clone"
    shutil.copytree(tiny.ROOT / "launch", clone / "launch")
    (clone / "tests").mkdir()
    for requirements in (clone / "requirements.txt", clone / "tests" / "requirements.txt"):
        requirements.write_text("")  # nothing to fetch: only the environment is looked at
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", clone / ".venv"], check=True)

    def set_up():
        return subprocess.run(
            ["bash", "-c", "source launch/environment.sh; .venv/bin/python -m pip --version"],
            cwd=clone,
            capture_output=True,
            text=True,
        )

    for damage in (lambda: None, lambda: (clone / ".venv" / "bin" / "python3").unlink()):
        damage()
        first, second = set_up(), set_up()
        assert first.returncode == 0, first.stderr
        assert str(clone / ".venv") in first.stdout
        assert "making .venv" in first.stderr
        assert (second.returncode, second.stderr) == (0, "")


def test_a_python_that_is_too_old_or_too_new_is_not_taken(tmp_path):
    clone = tmp_path / "clone"
    shutil.copytree(tiny.ROOT / "launch", clone / "launch")
    shutil.copytree(tiny.ROOT / "tests", clone / "tests", ignore=shutil.ignore_patterns("*.py"))
    shutil.copy(tiny.ROOT / "requirements.txt", clone)
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("python3", "python3.13", "python3.12", "python3.11"):
        (programs / name).write_text("#!/bin/sh\nexit 1\n")
        (programs / name).chmod(0o755)
    done = subprocess.run(
        ["bash", "-c", "source launch/environment.sh"],
        cwd=clone,
        env={"PATH": f"{programs}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "Python 3.11, 3.12 or 3.13 is needed" in done.stderr
    assert not (clone / ".venv").exists()
