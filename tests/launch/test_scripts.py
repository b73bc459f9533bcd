"""What holds for all scripts of launch/."""

import math
import re
import shutil
import subprocess
import sysconfig

import pytest

import scripts
from ddae_jax.aot import topology
from ddae_jax.aot.chips import CHIPS

FOR_PEOPLE = ("tpu_pod.sh", "tpu_worker.sh", "gke.sh", "slurm.sh")


@pytest.fixture
def tools(tmp_path):
    return scripts.Tools(tmp_path)


def test_shellcheck_finds_nothing():
    path = sysconfig.get_path("scripts")
    shellcheck = shutil.which("shellcheck", path=path) or shutil.which("shellcheck")
    assert shellcheck, "pip install -r tests/requirements.txt brings it"
    paths = sorted(str(path.name) for path in scripts.LAUNCH.glob("*.sh"))
    done = subprocess.run(
        [shellcheck, "--external-sources", *paths],
        cwd=scripts.LAUNCH,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", FOR_PEOPLE)
def test_help_tells_of_every_option(script, tools):
    shown = tools.output(script, "--help")
    assert f"bash {'launch/' * (script != 'tpu_worker.sh')}{script}" in shown
    assert "source" not in shown
    assert tools.output(script) == shown  # without anything else
    if script != "tpu_worker.sh":
        verb = ["run"] if script == "tpu_pod.sh" else []
        known = tools.refusal(script, *verb, "--colour=red")
        assert "--colour is no option here; the options: --" in known
        for option in known.split("options: ")[1].split():
            assert option in shown, option


def test_generations_are_those_that_the_package_knows():
    facts = subprocess.run(
        [
            "bash",
            "-c",
            "source tpu_generations.sh; echo $chips_per_host;"
            'for g in "${!sides[@]}"; do echo "$g ${sides[$g]} ${accelerator_prefix[$g]}'
            ' ${runtime_version[$g]} ${gke_accelerator[$g]}"; done',
        ],
        cwd=scripts.LAUNCH,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert int(facts[0]) == math.prod(topology._HOST)
    told = {name: (int(sides), *rest) for name, sides, *rest in map(str.split, facts[1:])}
    assert {name: sides for name, (sides, *_) in told.items()} == topology._DIMENSIONS
    assert all(len(rest) == 4 for rest in told.values())  # nothing is missing
    assert told.keys() <= {chip.name for chip in CHIPS.values()}


def test_the_image_holds_what_exists_and_is_not_ignored():
    lines = (scripts.LAUNCH / "Dockerfile").read_text().splitlines()
    copied = {path for line in lines if line.startswith("COPY") for path in line.split()[1:-1]}
    assert {"ddae_jax", "configs", "requirements.txt"} <= copied
    ignored = (scripts.LAUNCH / "Dockerfile.dockerignore").read_text().splitlines()
    assert ignored[0] == "*"
    for path in copied:
        assert (scripts.LAUNCH.parent / path).exists()
        assert f"!{path}" in ignored


RUN = ("--config=configs/digits.py", "--workdir=/mnt/shared/run")
ELSEWHERE = {
    "tpu_pod.sh": ("run", "--name=mine", "--zone=us-west4-a", *RUN),
    "gke.sh": ("--name=mine", "--image=image", "--topology=v5e:4x4", "--bucket=ours", *RUN),
    "slurm.sh": ("--time=1:00:00", *RUN),
}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--config="], "--config=VALUE is missing"),
        (["--config=configs/digit.py"], "--config=configs/digit.py: there is no such file"),
        (["--workdir=gs://bucket/run"], "is an address, not a folder"),
        (["--workdir=runs/mine"], "give the whole path"),
        (["--job=embed"], "--job=embed; it is pretrain, finetune or segment"),
        (["--workdir"], "--workdir has no value; write --workdir=VALUE"),
        (["--dry-run=yes"], "--dry-run takes no value"),
        (["mine"], "'mine' is no option; options look like --name=VALUE"),
        (["--config.epochs=3"], "--config.epochs=3: changes of the config come last, after --"),
        (["--name=Mine!"], "--name="),
    ],
)
@pytest.mark.parametrize("script", ELSEWHERE)
def test_a_mistake_is_named_before_anything_is_done(script, given, said, tools):
    assert said in tools.refusal(script, *ELSEWHERE[script], *given)


@pytest.mark.parametrize(
    ("script", "tool"), [("tpu_pod.sh", "gcloud"), ("gke.sh", "kubectl"), ("slurm.sh", "sbatch")]
)
def test_a_tool_that_is_missing_is_named_and_a_dry_run_needs_none(script, tool, tools):
    assert f"{tool} is not installed" in tools.refusal(script, *ELSEWHERE[script])
    assert tools.output(script, *ELSEWHERE[script], "--dry-run")


@pytest.mark.parametrize("job", ["finetune", "segment"])
@pytest.mark.parametrize("script", ELSEWHERE)
def test_other_jobs_than_pretraining_are_run_alike(script, job, tools):
    assert f"ddae_jax.{job}" in tools.output(
        script, *ELSEWHERE[script], f"--job={job}", "--dry-run"
    )


def test_the_commands_of_the_docs_are_right(tools):
    text = (scripts.LAUNCH.parent / "docs" / "scaling.md").read_text().replace("\\\n", "")
    found = [words for words in shown_commands(text) if words[:1] == ["bash"]]
    assert {words[1] for words in found} == {f"launch/{script}" for script in ELSEWHERE}
    for _, script, *given in found:
        at = given.index("--") if "--" in given else len(given)
        shown = tools.output(script.split("/")[1], *given[:at], "--dry-run", *given[at:])
        for change in given[at + 1 :]:
            assert change in shown


def shown_commands(markdown):
    """The commands in the blocks of shell of a page."""
    blocks = re.findall(r"^```sh\n(.*?)^```", markdown, re.DOTALL | re.MULTILINE)
    return [words for block in blocks for words in scripts.commands(block)]
