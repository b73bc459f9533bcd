"""The README's commands, as shell scripts."""

import json
import os
import subprocess

import pytest

import tiny


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
            "--config.optimizer.warmup_epochs=0.5",
        ],
        cwd=tmp_path,  # from anywhere
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert records[-1]["loss"] < 0.7 * records[1]["loss"]
    assert {"knn/untrained", "knn/raw_pixels"} <= records[0].keys()
    assert "knn/trained" in records[-1]
    assert "report: " in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


@pytest.mark.parametrize("script", ["environment.sh", "quickstart.sh", "test.sh"])
def test_scripts_parse(script):
    assert subprocess.run(["bash", "-n", str(tiny.ROOT / "launch" / script)]).returncode == 0
