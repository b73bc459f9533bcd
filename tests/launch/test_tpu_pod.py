"""Slices of Cloud TPUs, as a `gcloud` plays them, and their hosts, as folders."""

import os
import pathlib
import shlex
import shutil
import time

import pytest

import scripts
from ddae_jax.training.health import RecurringNonFiniteLoss

SLICE = ("--name=mine", "--zone=us-west4-a")
CREATED = (*SLICE, "--accelerator=v5litepod-64")
RUN = ("--config=configs/imagenet_ddae_vit_b16.py", "--workdir=/mnt/shared/runs/mine")
CHANGED = ("--", *scripts.CHANGES)
STARTED = [
    *("bash", "ddae_jax/code/launch/tpu_worker.sh", "start", "-m", "ddae_jax.pretrain"),
    *(*RUN, "--distributed", *scripts.CHANGES),
]

# The state of the slice is in the file `queue`, if there is one, and in `nodes`, one word a look;
# that of the run in `hosts`, likewise.
GCLOUD = r"""
if [ -e broken ] && [[ $* == *$(<broken)* ]]; then rm broken; exit 1; fi
case "$*" in
  *'queued-resources create'*) echo ACTIVE >queue ;;
  *'queued-resources describe'*)
    [ ! -e unreachable ] || { rm unreachable; echo 'ERROR: connection reset' >&2; exit 1; }
    [ -e queue ] || { echo "ERROR: NOT_FOUND: Resource 'mine' was not found" >&2; exit 1; }
    pop queue ;;
  *'queued-resources delete'*) rm queue ;;
  *'tpu-vm describe'*) pop nodes ;;
  *tpu_worker.sh\ state*)
    echo 'SSH: Attempting to connect to worker 0...' >&2
    pop hosts | tr , '\n' | sed 's/^/ddae_jax: /' ;;
esac
"""


@pytest.fixture
def tools(tmp_path):
    return scripts.Tools(tmp_path)


@pytest.fixture
def cloud(tools):
    tools.play("gcloud", GCLOUD)
    tools.play("sleep")
    return tools


def option(words, name):
    """The value of an option in a command."""
    [value] = [w.split("=", 1)[1] for w in words if w.startswith(f"--{name}=")]
    return value


def verb(words):
    """What a command of gcloud does: its verb, or, over ssh, that of the script there."""
    if words[4] != "ssh":
        return " ".join(words[3:5])
    remote = shlex.split(option(words, "command").split(" 2>")[0].split(" && ")[-1])
    return remote[2] if remote[0] == "bash" else remote[0]


def deeds(tools):
    """What was done to the slice, without mere looks."""
    looks = ("queued-resources describe", "tpu-vm describe", "state", "tpu-vm scp")
    done = [verb(words) for words in tools.calls() if words[0] == "gcloud"]
    return [deed.removeprefix("queued-resources ") for deed in done if deed not in looks]


@pytest.mark.parametrize(
    ("accelerator", "runtime"),
    [
        ("v4-32", "tpu-ubuntu2204-base"),
        ("v5litepod-64", "v2-alpha-tpuv5-lite"),
        ("v5p-128", "v2-alpha-tpuv5"),
        ("v6e-8", "v2-alpha-tpuv6e"),
    ],
)
def test_a_slice_is_asked_for_with_the_software_of_its_generation(accelerator, runtime, tools):
    given = ["create", *SLICE, f"--accelerator={accelerator}", "--dry-run"]
    created, looked = scripts.commands(tools.output("tpu_pod.sh", *given))
    assert created[:6] == ["gcloud", "compute", "tpus", "queued-resources", "create", "mine"]
    assert option(created, "accelerator-type") == accelerator
    assert option(created, "runtime-version") == runtime
    assert option(created, "node-id") == "mine"
    assert option(created, "zone") == option(looked, "zone") == "us-west4-a"
    assert "--spot" not in created
    assert not any(word.startswith("--project") for word in created)
    given += ["--spot", "--runtime=newest", "--project=ours"]
    created, looked = scripts.commands(tools.output("tpu_pod.sh", *given))
    assert "--spot" in created
    assert option(created, "runtime-version") == "newest"
    assert option(created, "project") == option(looked, "project") == "ours"


@pytest.mark.parametrize("accelerator", ["v7-8", "v5e-64", "v5litepod", "v5litepod-0", "v4-8x"])
def test_an_unknown_accelerator_is_named_with_those_that_are(accelerator, tools):
    said = tools.refusal("tpu_pod.sh", "create", *SLICE, f"--accelerator={accelerator}")
    assert f"--accelerator={accelerator}; it is one of" in said
    for known in ("v4-N", "v5litepod-N", "v5p-N", "v6e-N"):
        assert known in said


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["fly", *SLICE], "'fly' is no verb; it is create, setup, run"),
        (["create", "--name=mine", "--accelerator=v4-8"], "--zone=VALUE is missing"),
        (["create", "--zone=z", "--accelerator=v4-8"], "--name=VALUE is missing"),
        (["create", *SLICE], "--accelerator=VALUE is missing"),
        (["watch", *SLICE, *RUN], "--accelerator=VALUE is missing"),
        (["watch", *CREATED, *RUN, "--every=0"], "--every=0; it is a whole number"),
        (["setup", *SLICE, "--", "--config.epochs=3"], "is for run and watch"),
        (["run", *SLICE, *RUN, "--bucket=gs://ours"], "--bucket=gs://ours; it is a name"),
        (["run", *SLICE, *RUN, "--nfs=/share"], "--nfs=/share; it looks like 10.0.0.2:/share"),
        (["run", *SLICE, *RUN, "--nfs=h:/s", "--bucket=b"], "--bucket or --nfs, not both"),
        (["run", *SLICE, RUN[0], "--workdir=/home/me/run", "--bucket=b"], "/home/me/run is not"),
    ],
)
def test_a_mistake_is_named(given, said, cloud):
    assert said in cloud.refusal("tpu_pod.sh", *given)


def test_setup_copies_a_revision_to_all_hosts_and_installs_there(tools):
    printed = tools.output("tpu_pod.sh", "setup", *SLICE, "--revision=v1.2", "--dry-run")
    archived, copied, installed = scripts.commands(printed)
    assert archived[:4] == ["git", "-C", str(scripts.LAUNCH.parent), "archive"]
    assert archived[-1] == "v1.2"
    assert copied[3:7] == ["tpu-vm", "scp", option(archived, "output"), "mine:"]
    assert pathlib.Path(option(archived, "output")).name == "ddae_jax.tar.gz"
    assert option(archived, "prefix") == "code/"
    assert option(copied, "worker") == option(installed, "worker") == "all"
    command = option(installed, "command")
    assert "tar -xzf ddae_jax.tar.gz -C ddae_jax" in command
    assert command.endswith("bash ddae_jax/code/launch/tpu_worker.sh install")


@pytest.mark.parametrize(
    ("given", "mounted"),
    [
        ([], None),
        (["--bucket=ours"], ["mount-bucket", "ours"]),
        (["--nfs=10.0.0.2:/share"], ["mount-nfs", "10.0.0.2:/share"]),
    ],
)
def test_run_mounts_and_starts_on_all_hosts_with_every_argument_as_given(given, mounted, tools):
    printed = tools.output("tpu_pod.sh", "run", *SLICE, *RUN, *given, "--dry-run", *CHANGED)
    *before, started = scripts.commands(printed)
    assert option(started, "worker") == "all"
    assert shlex.split(option(started, "command")) == STARTED
    assert [shlex.split(option(words, "command"))[2:] for words in before] == (
        [mounted] if mounted else []
    )


def test_a_dry_run_of_watch_shows_all_that_it_may_do(tools):
    printed = tools.output("tpu_pod.sh", "watch", *CREATED, *RUN, "--bucket=b", "--dry-run")
    found = [verb(words) for words in scripts.commands(printed) if words[0] == "gcloud"]
    assert found == [
        *("queued-resources create", "queued-resources describe", "tpu-vm scp", "install"),
        *("mount-bucket", "start"),
    ]


def watch(cloud, nodes, hosts, *given):
    """Watches a slice whose states, and those of the run, are these, one a look."""
    for name, states in (("nodes", nodes), ("hosts", hosts)):
        (cloud.folder / name).write_text("".join(f"{state}\n" for state in states))
    return cloud.run("tpu_pod.sh", "watch", *CREATED, *RUN, "--bucket=b", *given, *CHANGED)


def test_watch_makes_a_slice_and_runs_the_same_again_after_a_preemption(cloud):
    nodes = ["CREATING", "READY", "READY", "PREEMPTED", "CREATING", "READY"]
    hosts = ["bare,bare", "running,running", "bare,bare", "running,running", "ended 0,ended 0"]
    done = watch(cloud, nodes, hosts, "--spot")
    assert done.returncode == 0, done.stderr
    assert "the run is complete" in done.stdout
    once = ["create", "install", "mount-bucket", "start"]
    assert deeds(cloud) == [*once, "delete", *once]
    first, second = (w for w in cloud.calls() if w[0] == "gcloud" and verb(w) == "start")
    assert first == second
    assert shlex.split(option(first, "command")) == STARTED
    assert ["sleep", "60"] in cloud.calls()
    assert all("--spot" in w for w in cloud.calls() if w[3:5] == ["queued-resources", "create"])


@pytest.mark.parametrize("queue", ["SUSPENDED", "FAILED"])
def test_watch_asks_anew_for_a_slice_that_is_gone_but_not_for_what_is_not_given(queue, cloud):
    (cloud.folder / "queue").write_text(f"WAITING_FOR_RESOURCES\nPROVISIONING\n{queue}\n")
    done = watch(cloud, ["READY"], ["bare", "ended 0"])
    if queue == "FAILED":
        assert done.returncode == 1
        assert "the request for mine failed; why: gcloud compute tpus queued" in done.stderr
        assert deeds(cloud) == []
    else:
        assert done.returncode == 0
        assert deeds(cloud)[:3] == ["delete", "create", "install"]


def test_watch_deletes_nothing_when_the_cloud_cannot_be_reached(cloud):
    (cloud.folder / "queue").write_text("ACTIVE\n")
    (cloud.folder / "unreachable").touch()
    done = watch(cloud, ["READY"], ["running", "ended 0"])
    assert done.returncode == 0
    assert "UNKNOWN" in done.stdout
    assert "connection reset" in done.stderr
    assert deeds(cloud) == []


@pytest.mark.slow
@pytest.mark.parametrize("broken", ["tpu-vm scp", "install", "mount-bucket", "start"])
def test_watch_tries_again_what_did_not_succeed_and_does_nothing_that_builds_on_it(broken, cloud):
    (cloud.folder / "queue").write_text("ACTIVE\n")
    (cloud.folder / "broken").write_text(broken)
    done = watch(cloud, ["READY"], ["bare", "bare", "ended 0"])
    assert done.returncode == 0
    assert "setup_and_run did not succeed; trying again" in done.stderr
    steps = ["install", "mount-bucket", "start"]
    first = steps[: steps.index(broken) + 1] if broken in steps else []
    assert deeds(cloud) == [*first, *steps]


@pytest.mark.parametrize(
    "hosts",
    [
        "ended 75,ended 75",  # stopped by a signal, as for maintenance
        "ended 1,idle",  # one host was started anew, and the others missed it
        "ended 255,ended 1",
    ],
)
def test_watch_continues_a_run_that_did_not_reach_its_end(hosts, cloud):
    (cloud.folder / "queue").write_text("ACTIVE\n")
    done = watch(cloud, ["READY"], ["running,running", hosts, "ended 0,running", "ended 0,ended 0"])
    assert done.returncode == 0, done.stderr
    assert deeds(cloud) == ["mount-bucket", "start"]


def test_watch_gives_up_a_run_that_fails_again_and_again_and_shows_its_log(cloud):
    (cloud.folder / "queue").write_text("ACTIVE\n")
    done = watch(cloud, ["READY"], ["ended 1,ended 1"], "--restarts=2")
    assert done.returncode == 1
    assert "the run does not go on: it failed 3 times" in done.stderr
    assert deeds(cloud) == ["mount-bucket", "start"] * 2 + ["tail"]


def test_watch_does_not_start_again_what_was_refused(cloud):
    (cloud.folder / "queue").write_text("ACTIVE\n")
    done = watch(cloud, ["READY"], ["ended 2,ended 2"])
    assert done.returncode == 1
    assert "its input is not right" in done.stderr
    assert deeds(cloud) == ["tail"]


def test_watch_does_not_start_again_what_would_go_wrong_again(cloud):
    (cloud.folder / "queue").write_text("ACTIVE\n")
    status = RecurringNonFiniteLoss.exit_status
    done = watch(cloud, ["READY"], [f"ended {status},ended {status}"])
    assert done.returncode == 1
    assert "it went wrong as it did the time before, and would again" in done.stderr
    assert deeds(cloud) == ["tail"]


def test_create_waits_until_the_slice_is_there(cloud):
    (cloud.folder / "nodes").write_text("CREATING\nCREATING\nREADY\n")
    printed = cloud.output("tpu_pod.sh", "create", *CREATED, "--every=5")
    assert printed == "mine: CREATING\n" * 2
    assert cloud.calls().count(["sleep", "5"]) == 2


@pytest.mark.parametrize("answer", ["", "n\n", "y\n"])
def test_delete_asks_unless_told_yes(answer, cloud):
    (cloud.folder / "queue").write_text("ACTIVE\n")
    done = cloud.run("tpu_pod.sh", "delete", *SLICE, input=answer)
    assert deeds(cloud) == (["delete"] if answer == "y\n" else [])
    assert done.returncode == (0 if answer == "y\n" else 2)
    assert ("nothing was deleted" in done.stderr) == (answer != "y\n")


def test_delete_told_yes_does_not_ask_and_takes_the_nodes_along(cloud):
    (cloud.folder / "queue").write_text("ACTIVE\n")
    cloud.output("tpu_pod.sh", "delete", *SLICE, "--yes")
    [deleted] = cloud.calls()
    assert deleted[3:6] == ["queued-resources", "delete", "mine"]
    assert {"--force", "--quiet", "--zone=us-west4-a"} <= set(deleted)


def test_status_and_logs_look_at_the_hosts(cloud):
    (cloud.folder / "queue").write_text("ACTIVE\n")
    (cloud.folder / "nodes").write_text("READY\n")
    (cloud.folder / "hosts").write_text("running,ended 1\n")
    printed = cloud.output("tpu_pod.sh", "status", *SLICE)
    assert printed == "mine: READY\nddae_jax: running\nddae_jax: ended 1\n"
    cloud.output("tpu_pod.sh", "logs", *SLICE, "--worker=3")
    assert option(cloud.calls()[-1], "worker") == "3"
    assert option(cloud.calls()[-1], "command").endswith("-F ddae_jax/log")


# A host


@pytest.fixture
def host(tools):
    """A host that was set up.

    Its Python writes down its arguments and waits for SIGTERM; a worker of it stays behind.
    """
    home = tools.folder / "ddae_jax"
    shutil.copytree(scripts.LAUNCH, home / "code" / "launch")
    (home / "venv" / "bin").mkdir(parents=True)
    python = home / "venv" / "bin" / "python"
    python.write_text(
        f"#!{shutil.which('bash')}\n"
        f"cd {tools.folder}\n"
        "{ while [ -e ddae_jax ]; do sleep 0.1; done; } &\n"
        "trap 'exit $DDAE_JAX_STOPPED_STATUS' TERM\n"
        'printf \'%s\\0\' "$PWD" "$@" >arguments.new\n'
        "mv arguments.new arguments\n"
        "while [ -e ddae_jax ]; do sleep 0.05; done\n"
    )
    python.chmod(0o755)
    (home / "installed").touch()
    yield tools
    shutil.rmtree(home)  # which ends both


def on_host(host, command):
    """Runs a shell command as ssh does, in the home folder."""
    path = host.folder / "command.sh"
    path.write_text(command)
    return host.run(path)


def state(host):
    done = on_host(host, "bash ddae_jax/code/launch/tpu_worker.sh state")
    return done.stdout.removeprefix("ddae_jax: ").strip()


def wait_for(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def start(host):
    """Starts what `tpu_pod.sh run` prints, by the shell of the host."""
    printed = host.output("tpu_pod.sh", "run", *SLICE, *RUN, "--dry-run", *CHANGED)
    [words] = scripts.commands(printed)
    (host.folder / "arguments").unlink(missing_ok=True)
    done = on_host(host, option(words, "command"))
    if done.returncode == 0:
        wait_for((host.folder / "arguments").exists)
    return done


def test_a_host_starts_the_run_with_every_argument_as_given_stops_it_and_tells(host):
    assert state(host) == "idle"
    assert start(host).returncode == 0
    arguments = (host.folder / "arguments").read_text().split("\0")[1:-1]
    assert arguments == STARTED[3:]
    assert state(host) == "running"
    again = on_host(host, "bash ddae_jax/code/launch/tpu_worker.sh start -m ddae_jax.pretrain")
    assert again.returncode == 2
    assert "a run is going on on this host" in again.stderr
    assert on_host(host, "bash ddae_jax/code/launch/tpu_worker.sh stop").returncode == 0
    wait_for(lambda: state(host) == "ended 75")
    assert start(host).returncode == 0
    wait_for(lambda: state(host) == "running")


def test_a_host_that_was_started_anew_has_no_run_and_no_end_of_it(host):
    start(host)
    on_host(host, "bash ddae_jax/code/launch/tpu_worker.sh stop")
    wait_for(lambda: state(host) == "ended 75")
    start(host)
    pid = int((host.folder / "ddae_jax" / "pid").read_text())
    os.killpg(os.getpgid(pid), 9)  # nothing of it is left, nor could note anything
    wait_for(lambda: state(host) == "idle")


def test_a_host_that_was_not_set_up_says_so(host):
    (host.folder / "ddae_jax" / "installed").unlink()
    assert state(host) == "bare"


def test_installing_takes_requirements_of_training_and_of_tpus_and_says_when_it_is_done(host):
    host.play("python3", "[ ! -e broken ]")
    (host.folder / "broken").touch()
    install = "bash ddae_jax/code/launch/tpu_worker.sh install"
    assert on_host(host, install).returncode != 0
    assert state(host) == "bare"
    (host.folder / "broken").unlink()
    assert on_host(host, install).returncode == 0
    assert state(host) == "idle"
    installed = host.calls()[-1]
    assert installed[:5] == ["python3", "-m", "uv", "pip", "install"]
    assert "jax[tpu]" in installed
    for name in ("requirements.txt", "launch/requirements-tpu.txt"):
        assert f"--requirement={host.folder}/ddae_jax/code/{name}" in installed


@pytest.mark.parametrize("is_mounted", [True, False])
def test_a_bucket_is_mounted_once_with_nothing_cached(is_mounted, host):
    host.play("mountpoint", f"exit {int(not is_mounted)}")
    host.play("sudo")
    host.play("gcsfuse")
    done = on_host(host, "bash ddae_jax/code/launch/tpu_worker.sh mount-bucket ours")
    assert done.returncode == 0, done.stderr
    mounted = [words for words in host.calls() if words[0] == "gcsfuse"]
    if is_mounted:
        assert mounted == []
    else:
        [words] = mounted
        assert words[-2:] == ["ours", "/mnt/shared"]
        assert "--metadata-cache-ttl-secs=0" in words
        assert "--implicit-dirs" in words


def test_a_share_is_mounted_where_all_hosts_see_it(host):
    host.play("mountpoint", "exit 1")
    host.play("mount.nfs")
    host.play("sudo")
    done = on_host(host, "bash ddae_jax/code/launch/tpu_worker.sh mount-nfs 10.0.0.2:/share")
    assert done.returncode == 0, done.stderr
    assert host.calls()[-1] == [
        *("sudo", "mount", "-t", "nfs", "10.0.0.2:/share", "/mnt/shared"),
    ]
