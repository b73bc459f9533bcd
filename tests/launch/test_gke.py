"""The manifest of a JobSet, as YAML reads it."""

import re

import pytest
import yaml

import scripts
from ddae_jax.training.health import RecurringNonFiniteLoss

JOB = (
    *("--name=mine", "--image=registry/ddae_jax:1", "--workdir=/mnt/shared/runs/mine"),
    "--config=configs/imagenet_ddae_vit_b16.py",
)
BUCKET = ("--bucket=ours",)
SMALL = "--topology=v5e:4x4"


@pytest.fixture
def tools(tmp_path):
    return scripts.Tools(tmp_path)


def render(tools, *given):
    """The manifest, and in it the job, the pod and its container."""
    manifest = yaml.safe_load(tools.output("gke.sh", *JOB, "--dry-run", *given))
    [replicated] = manifest["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    pod = job["template"]["spec"]
    [container] = pod["containers"]
    return manifest, job, pod, container


@pytest.mark.parametrize(
    ("topology", "accelerator", "hosts", "chips"),
    [
        ("v5e:1x1", "tpu-v5-lite-podslice", 1, 1),
        ("v5e:2x2", "tpu-v5-lite-podslice", 1, 4),
        ("v5e:16x16", "tpu-v5-lite-podslice", 64, 4),
        ("v4:2x2x4", "tpu-v4-podslice", 4, 4),
        ("v5p:4x4x4", "tpu-v5p-slice", 16, 4),
        ("v6e:8x16", "tpu-v6e-slice", 32, 4),
    ],
)
def test_there_is_a_pod_for_each_host_of_the_slice(topology, accelerator, hosts, chips, tools):
    _, job, pod, container = render(tools, *BUCKET, f"--topology={topology}")
    assert job["completions"] == job["parallelism"] == hosts
    assert job["completionMode"] == "Indexed"
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": accelerator,
        "cloud.google.com/gke-tpu-topology": topology.split(":")[1],
    }
    count = {"google.com/tpu": chips}
    assert container["resources"] == {"requests": count, "limits": count}
    assert ("--distributed" in container["args"]) == (hosts > 1)


def test_a_machine_may_hold_a_slice_of_eight_alone(tools):
    _, job, _, container = render(tools, *BUCKET, "--topology=v6e:2x4", "--chips-per-host=8")
    assert job["parallelism"] == 1
    assert container["resources"]["limits"] == {"google.com/tpu": 8}


def test_the_container_runs_the_job_with_every_argument_as_given(tools):
    _, _, _, container = render(tools, *BUCKET, SMALL, "--", *scripts.CHANGES)
    assert container["image"] == "registry/ddae_jax:1"
    assert container["command"] + container["args"] == [
        *("python", "-m", "ddae_jax.pretrain", "--config=configs/imagenet_ddae_vit_b16.py"),
        *("--workdir=/mnt/shared/runs/mine", "--distributed", *scripts.CHANGES),
    ]


def test_the_pods_find_each_other_and_lie_in_one_node_pool(tools):
    manifest, _, _, _ = render(tools, *BUCKET, SMALL)
    assert (manifest["apiVersion"], manifest["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert manifest["metadata"]["name"] == "mine"
    network = manifest["spec"]["network"]
    assert network["enableDNSHostnames"] is True
    assert network["publishNotReadyAddresses"] is True
    assert network["subdomain"] == "mine"
    topology = "alpha.jobset.sigs.k8s.io/exclusive-topology"
    assert manifest["metadata"]["annotations"][topology] == "cloud.google.com/gke-nodepool"


def test_what_was_stopped_or_taken_away_starts_again_and_what_fails_only_so_often(tools):
    manifest, job, pod, container = render(tools, *BUCKET, SMALL, "--max-restarts=7")
    policy = manifest["spec"]["failurePolicy"]
    assert policy["maxRestarts"] == 7
    recurring, rule = policy["rules"]
    assert recurring["action"] == "FailJobSet"
    assert recurring["onJobFailureReasons"] == ["PodFailurePolicy"]
    [pattern] = recurring["onJobFailureMessagePatterns"]
    message = (
        "Container train for pod x/y failed with exit code {} matching FailJob rule at index 1"
    )
    assert re.fullmatch(pattern, message.format(RecurringNonFiniteLoss.exit_status))
    assert not re.fullmatch(pattern, message.format(75))
    assert rule["action"] == "RestartJobSetAndIgnoreMaxRestarts"
    assert rule["onJobFailureReasons"] == ["PodFailurePolicy"]
    taken_away, stopped = job["podFailurePolicy"]["rules"]
    assert taken_away["action"] == stopped["action"] == "FailJob"
    assert taken_away["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    [variable] = container["env"]
    assert variable["name"] == "DDAE_JAX_STOPPED_STATUS"
    codes = stopped["onExitCodes"]
    assert (codes["operator"], codes["containerName"]) == ("In", container["name"])
    assert codes["values"] == [int(variable["value"]), RecurringNonFiniteLoss.exit_status]
    assert job["backoffLimit"] == 0
    assert pod["restartPolicy"] == "Never"
    assert pod["terminationGracePeriodSeconds"] >= 120


def test_a_bucket_is_mounted_where_the_workdir_is_with_nothing_cached(tools):
    _, job, pod, container = render(tools, *BUCKET, SMALL, "--service-account=trainer")
    paths = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert paths == {"shared": "/mnt/shared", "memory": "/dev/shm"}
    assert volumes["memory"]["emptyDir"] == {"medium": "Memory"}
    csi = volumes["shared"]["csi"]
    assert csi["driver"] == "gcsfuse.csi.storage.gke.io"
    assert csi["volumeAttributes"]["bucketName"] == "ours"
    options = csi["volumeAttributes"]["mountOptions"].split(",")
    assert {"implicit-dirs", "metadata-cache:ttl-secs:0"} <= set(options)
    assert job["template"]["metadata"]["annotations"]["gke-gcsfuse/volumes"] == "true"
    assert pod["serviceAccountName"] == "trainer"


def test_a_claim_takes_the_place_of_the_bucket(tools):
    _, job, pod, _ = render(tools, "--claim=share", SMALL)
    [volume] = [v for v in pod["volumes"] if v["name"] == "shared"]
    assert volume["persistentVolumeClaim"] == {"claimName": "share"}
    assert job["template"]["metadata"]["annotations"] == {}


def test_spot_nodes_are_selected_if_wanted(tools):
    _, _, pod, _ = render(tools, *BUCKET, SMALL, "--spot")
    assert pod["nodeSelector"]["cloud.google.com/gke-spot"] == "true"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--topology=v7:4x4", *BUCKET], "--topology=v7:4x4; known generations: v4 v5e v5p v6e"),
        (["--topology=v5p:4x4", *BUCKET], "a slice of v5p has 3 sides, as in v5p:4x4x4"),
        (["--topology=v5e:4x4x4", *BUCKET], "a slice of v5e has 2 sides, as in v5e:8x8"),
        (["--topology=v5e", *BUCKET], "a slice of v5e has 2 sides"),
        (["--topology=v5e:4x0", *BUCKET], "--topology=v5e:4x0"),
        (["--topology=v5e:3x3", *BUCKET], "has 9 chips, which hosts of 4"),
        ([SMALL], "--bucket=NAME or --claim=NAME is missing"),
        ([SMALL, *BUCKET, "--claim=c"], "--bucket or --claim, not both"),
        ([SMALL, *BUCKET, "--workdir=/home/run"], "/home/run is not what all hosts see"),
        ([SMALL, *BUCKET, "--image="], "--image=VALUE is missing"),
        ([SMALL, *BUCKET, "--", "--config.x=1\n2"], "there is a line break in an option"),
    ],
)
def test_a_mistake_is_named(given, said, tools):
    tools.play("kubectl", "cat >applied")
    assert said in tools.refusal("gke.sh", *JOB, *given)


def test_the_manifest_is_applied_and_what_comes_next_is_told(tools):
    tools.play("kubectl", "cat >applied")
    said = tools.output("gke.sh", *JOB, *BUCKET, SMALL, "--namespace=team")
    assert tools.calls() == [["kubectl", "apply", "-f", "-"]]
    applied = (tools.folder / "applied").read_text()
    assert applied == tools.output("gke.sh", *JOB, *BUCKET, SMALL, "--namespace=team", "--dry-run")
    assert yaml.safe_load(applied)["metadata"]["namespace"] == "team"
    assert "kubectl delete jobset mine --namespace=team" in said
