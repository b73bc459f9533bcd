"""The batch script of a SLURM job, as sbatch and a shell read it."""

import shutil

import pytest

import scripts

JOB = ("--time=24:00:00", "--config=configs/cifar10_ddae.py", "--workdir=/scratch/runs/mine")
LARGE = ("--nodes=2", "--gpus=8")


@pytest.fixture
def tools(tmp_path):
    return scripts.Tools(tmp_path)


def options_of(script):
    """What sbatch reads of a batch script."""
    lines = [line for line in script.splitlines() if line.startswith("#SBATCH --")]
    assert lines == script.splitlines()[1 : len(lines) + 1]  # nothing else comes between
    return dict(line.removeprefix("#SBATCH --").partition("=")[::2] for line in lines)


def test_there_is_a_process_for_each_gpu_which_sees_all_of_its_node(tools):
    script = tools.output("slurm.sh", *JOB, *LARGE, "--cpus=12", "--dry-run")
    options = options_of(script)
    assert options["nodes"] == "2"
    assert options["ntasks-per-node"] == options["gpus-per-node"] == "8"
    assert options["cpus-per-task"] == "12"
    [started] = [words for words in scripts.commands(script) if words[0] == "srun"]
    assert {"--gpu-bind=none", "--cpus-per-task=12"} <= set(started)
    assert not any("gpus-per-task" in word for word in [*started, *options])


def test_the_run_saves_before_the_limit_and_its_log_goes_on(tools):
    options = options_of(tools.output("slurm.sh", *JOB, "--save-time=600", "--dry-run"))
    assert options["time"] == "24:00:00"
    assert options["signal"] == "TERM@600"  # without B: to the processes
    assert options["requeue"] == ""
    assert options["open-mode"] == "append"
    assert "partition" not in options
    assert "account" not in options


def test_partition_and_account_are_told(tools):
    given = ("--partition=gpu,long", "--account=me", "--name=digits", "--dry-run")
    options = options_of(tools.output("slurm.sh", *JOB, *given))
    assert (options["partition"], options["account"]) == ("gpu,long", "me")
    assert options["job-name"] == "digits"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--time="], "--time=VALUE is missing"),
        (["--nodes=two"], "--nodes=two; it is a whole number of at least 1"),
        (["--gpus=0"], "--gpus=0; it is a whole number of at least 1"),
        (["--partition=gpu\n#SBATCH --exclusive"], "it has letters, digits"),
        (["--python=/no/such/python"], "/no/such/python: there is no such program"),
    ],
)
def test_a_mistake_is_named(given, said, tools):
    tools.play("sbatch")
    assert said in tools.refusal("slurm.sh", *JOB, *given)


def test_the_batch_script_is_submitted(tools):
    tools.play("sbatch", "cat >submitted; echo Submitted batch job 7")
    given = (*JOB, *LARGE, f"--python={shutil.which('true')}")
    assert "job 7" in tools.output("slurm.sh", *given)
    assert (tools.folder / "submitted").read_text() == tools.output("slurm.sh", *given, "--dry-run")


def run_job(tools, status, state="RUNNING", given=LARGE):
    """Runs the batch script with processes that end with a status; what srun was given."""
    tools.play("srun", f"printenv DDAE_JAX_STOPPED_STATUS >stopped_status; exit {status}")
    tools.play("squeue", f"echo {state}")
    tools.play("scontrol")
    script = tools.folder / "job.sh"
    script.write_text(tools.output("slurm.sh", *JOB, *given, "--dry-run", "--", *scripts.CHANGES))
    done = tools.run(script, env={"SLURM_JOB_ID": "123"})
    [started] = [words for words in tools.calls() if words[0] == "srun"]
    return done, started


@pytest.mark.parametrize("given", [LARGE, ()])
def test_the_job_runs_with_every_argument_as_given(given, tools):
    done, started = run_job(tools, status=0, given=given)
    assert done.returncode == 0, done.stderr
    distributed = ["--distributed"] if given else []
    assert started[started.index(".venv/bin/python") + 1 :] == [
        *("-m", "ddae_jax.pretrain", *JOB[1:], *distributed, *scripts.CHANGES),
    ]
    assert "scontrol" not in {words[0] for words in tools.calls()}


def test_a_run_that_was_stopped_before_its_end_goes_back_into_the_queue(tools):
    stopped = 75
    run_job(tools, stopped)
    assert tools.calls()[-1] == ["scontrol", "requeue", "123"]
    assert (tools.folder / "stopped_status").read_text() == f"{stopped}\n"


@pytest.mark.parametrize(("status", "state"), [(1, "RUNNING"), (2, "RUNNING"), (75, "CANCELLED")])
def test_a_run_that_failed_or_was_cancelled_does_not(status, state, tools):
    done, _ = run_job(tools, status, state)
    assert done.returncode == status
    assert "scontrol" not in {words[0] for words in tools.calls()}
