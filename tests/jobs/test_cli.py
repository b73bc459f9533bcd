import functools
import importlib
import json
import math
import pathlib
import re
import subprocess
import sys
import zlib

import jax
import jax.numpy as jnp
import pytest
from absl import flags as absl_flags

import stand_ins
from ddae_jax.builders.methods import build_method
from ddae_jax.builders.optimization import build_learning_rate, build_optimizer
from ddae_jax.config import pretrain_defaults, to_plain
from ddae_jax.config.checks import check_config, ignored_keys
from ddae_jax.config.earlier import DEFAULTS_VERSION
from ddae_jax.config.keys import KEYS
from ddae_jax.config.reference import shown
from ddae_jax.config.schema import flatten
from ddae_jax.data.annotations import BadAnnotation
from ddae_jax.data.disks import ReadFailed
from ddae_jax.data.files import NoMemoryLeft
from ddae_jax.data.labels import BadLabel
from ddae_jax.data.train_loader import TooManyCorruptImages
from ddae_jax.data.uniform_size import OddSize
from ddae_jax.data.workers import WorkerLost
from ddae_jax.jobs import cli, devices
from ddae_jax.jobs.exits import CommandEnded, explain_bad_input, explain_run_ends
from ddae_jax.models import vit
from ddae_jax.training.checkpoint import CheckpointError
from ddae_jax.training.health import NonFiniteLoss
from ddae_jax.training.reading import ReadingHangs
from ddae_jax.training.schedules import Schedule
from ddae_jax.training.workdir import WorkdirInUse
from tiny import write_config

CONFIGS = sorted((pathlib.Path(__file__).parents[2] / "configs").glob("*.py"))
JOB_OF_WORD = {
    "finetune": "finetune",
    "linear": "finetune",
    "upernet": "segment",
    "segment": "segment",
}
DOWNSTREAM = [path for path in CONFIGS if set(path.stem.split("_")) & JOB_OF_WORD.keys()]
USAGE = "ddae_jax.test Does this and that."


@pytest.fixture(autouse=True)
def unchanged_process(monkeypatch):
    """Undoes what parsing leaves in the process: the path, and the tiny config's model size."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(vit, "SIZES", vit.SIZES)
    monkeypatch.setitem(vit.SIZES, "micro", vit.SIZES["micro"])


@pytest.fixture
def file(tmp_path):
    return str(write_config(tmp_path))


def define(flags):
    absl_flags.DEFINE_string("workdir", None, "Folder of the run.", flag_values=flags)
    absl_flags.DEFINE_boolean("distributed", False, "Join others.", flag_values=flags)


def parse(*argv):
    return cli.parse_config_flags(list(argv), USAGE, define)


# ---- flags


def test_values_on_the_command_line_reach_the_config(file):
    flags = parse(
        f"--config={file}",
        "--workdir=W",
        "--config.model.image_size=(32,24)",
        "--config.optimizer.learning_rate=3e-4",
        "--config.epochs=3",
        "--config.supervision.mode=last",
        "--config.data.flip=true",
        "--noconfig.targets.normalize_pixels",
        "--config.supervision.depths=(1,3)",
    )
    config = flags.config
    assert (flags.workdir, flags.distributed) == ("W", False)
    assert config.model.image_size == (32, 24)
    assert config.optimizer.learning_rate == 3e-4
    assert (config.epochs, type(config.epochs)) == (3.0, float)
    assert config.supervision.mode == "last"
    assert config.supervision.depths == (1, 3)
    assert (config.data.flip, config.targets.normalize_pixels) == (True, False)
    assert config.batch_size == 64  # from the file


def test_the_config_file_may_be_an_argument_of_its_own(file):
    assert parse("--config", file, "--workdir", "W").config.batch_size == 64


@pytest.mark.parametrize(
    "size", ["32,24", "(32,24)", "(32, 24)", "[32, 24]", "32, 24,"], ids=lambda size: size
)
def test_a_tuple_is_numbers_with_commas_in_brackets_or_not(file, size):
    config = parse(f"--config={file}", f"--config.model.image_size={size}").config
    assert config.model.image_size == (32, 24)


def test_a_single_number_is_a_tuple_of_one(file):
    config = parse(f"--config={file}", "--config.data.mean=0.25", "--config.data.std=0.2").config
    assert (config.data.channels, config.data.mean, config.data.std) == (1, (0.25,), (0.2,))


def test_values_may_be_arguments_of_their_own_and_stand_anywhere(file):
    flags = parse(
        "-config.mesh.data", "-1", "--config.epochs", "3", f"--config={file}", "--workdir", "W"
    )
    assert (flags.config.mesh.data, flags.config.epochs, flags.workdir) == (-1, 3.0, "W")


def test_keys_that_are_true_or_false_need_no_value(file):
    given = (f"--config={file}", "--config.data.flip", "--noconfig.log.tensorboard", "--workdir=W")
    flags = parse(*given)
    assert (flags.config.data.flip, flags.config.log.tensorboard) == (True, False)
    assert flags.workdir == "W"


def test_the_last_of_several_values_counts(file):
    given = (f"--config={file}", "--config.model.image_size=8,8", "--config.model.image_size=12,8")
    assert parse(*given).config.model.image_size == (12, 8)


def test_a_file_of_flags_may_change_the_config(file, tmp_path):
    flag_file = tmp_path / "flags"
    flag_file.write_text(f"--config={file}\n--config.epochs=7\n--workdir=W\n")
    flags = parse(f"--flagfile={flag_file}")
    assert (flags.config.epochs, flags.workdir) == (7.0, "W")


def test_the_config_is_locked(file, tmp_path):
    config = parse(f"--config={file}").config
    with pytest.raises(AttributeError):
        config.new = 3


def test_a_config_file_takes_an_argument_after_a_colon(tmp_path):
    path = tmp_path / "sized.py"
    path.write_text(
        "from ddae_jax.config import pretrain_defaults\n"
        "def get_config(size='B'):\n"
        "    config = pretrain_defaults()\n"
        "    config.model.size = size\n"
        "    return config\n"
    )
    assert parse(f"--config={path}").config.model.size == "B"
    assert parse(f"--config={path}:Ti").config.model.size == "Ti"


def test_the_keys_that_a_command_line_sets_are_told_and_nothing_is_checked_yet(file, tmp_path):
    flag_file = tmp_path / "flags"
    flag_file.write_text("--config.epochs=7\n")
    argv = [
        f"--flagfile={flag_file}",
        f"--config={file}",
        "--config.mask.ratio",
        "7",
        "--workdir=W",
    ]
    flags, given = cli.read_config_flags(
        [*argv, "--noconfig.data.flip", "--config.seed=0"], USAGE, define
    )
    assert given == {"epochs", "mask.ratio", "data.flip", "seed"}
    assert (flags.config.mask.ratio, flags.config.epochs) == (7.0, 7.0)


@pytest.mark.parametrize("word", ["--help", "-h", "-help"])
def test_help_tells_usage_and_flags_and_ends_well(word, capsys):
    with pytest.raises(CommandEnded) as ended:
        parse(word)
    assert ended.value.code == 0
    shown = capsys.readouterr()
    assert shown.out.startswith(USAGE)
    assert "--workdir: Folder of the run." in shown.out
    assert "--config: Config file" in shown.out
    assert shown.err == ""


@pytest.mark.parametrize("job", KEYS)
def test_the_help_of_a_job_lists_its_keys_in_lines_of_80_columns(job, capsys):
    module = importlib.import_module(f"ddae_jax.{job}")
    with pytest.raises(CommandEnded) as ended:
        module.main(["--help"])
    assert ended.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert "--config.KEY=VALUE sets one" in "\n".join(lines)
    keys = [line.split("=")[0].strip() for line in lines if re.match(r"  [a-z][\w.]*=", line)]
    assert sorted(keys) == sorted(KEYS[job])
    for name, key in KEYS[job].items():
        assert key.doc.split()[0] in lines[lines.index(f"  {name}={shown(key.default)}") + 1]


def test_the_help_of_a_command_for_any_config_says_where_the_keys_are(capsys):
    with pytest.raises(CommandEnded):
        cli.read_config_flags(["--help"], USAGE, define, None)
    assert "docs/config.md lists the keys" in capsys.readouterr().out


# ---- what is wrong with a command line


def test_a_missing_config_is_asked_for():
    with pytest.raises(ValueError, match=r"--config=FILE is missing; configs/digits.py runs"):
        parse("--workdir=W")


@pytest.mark.parametrize(
    "given", [["--config="], ["--config", "--workdir=W"], ["--workdir=W", "--config"]], ids=" ".join
)
def test_a_config_without_a_file_is_asked_for(given):
    with pytest.raises((ValueError, absl_flags.Error), match="--config"):
        parse(*given)


def test_a_folder_and_another_file_are_no_config(tmp_path):
    with pytest.raises(FileNotFoundError, match=rf"--config={tmp_path}: it is a folder"):
        parse(f"--config={tmp_path}")
    stored = tmp_path / "config.json"
    stored.write_text("{}")
    with pytest.raises(ValueError, match=rf"--config={stored}: a config is a Python file"):
        parse(f"--config={stored}")


def test_a_config_file_that_does_not_exist_is_named():
    with pytest.raises(FileNotFoundError, match=r"--config=configs/none.py: there is no such file"):
        parse("--config=configs/none.py")


@pytest.mark.parametrize(
    ("given", "near"),
    [
        ("--config.model.sise=B", "config.model.size"),
        ("--config.batchsize=4", "config.batch_size"),
        ("--config.learning_rate=1", "config.optimizer.learning_rate"),
        ("-config.mask.rato=0.5", "config.mask.ratio"),
        ("--noconfig.data.flop", "config.data.flip"),
        ("--config.evaluation.max_train_examples=3", "config.evaluation.max_examples"),
        ("--config.epochs.a=3", "config.epochs"),
        ("--config.optimizer.lr=1e-3", "config.optimizer.learning_rate"),
        ("--config.wd=0.05", "config.optimizer.weight_decay"),
        ("--config.input_size=224,224", "config.model.image_size"),
        ("--config.accum-iter=2", "config.optimizer.micro_batches"),
        ("--config.mask_ratio=0.75", "config.mask.ratio"),
        ("--config.resume=x", "config.init_from"),
    ],
)
def test_an_unknown_key_on_the_command_line_names_the_nearest(file, given, near):
    with pytest.raises(ValueError, match=r"is no key of a pretraining config") as caught:
        parse(f"--config={file}", given)
    assert f"did you mean {near}?" in str(caught.value)


def test_an_unknown_key_in_the_file_names_the_nearest(tmp_path):
    path = tmp_path / "wrong.py"
    path.write_text(
        "from ddae_jax.config import pretrain_defaults\n"
        "def get_config():\n"
        "    config = pretrain_defaults()\n"
        "    config.model.sise = 'B'\n"
        "    return config\n"
    )
    with pytest.raises(
        ValueError, match=rf"--config={path} .*line 4.*no key.*did you mean config.model.size"
    ):
        parse(f"--config={path}")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('config.epochs = "ten"', "config.epochs is of the wrong type; it is a number"),
        ("config.epochs = None", "config.epochs=None is of the wrong type; it is a number"),
        (
            "config.model.image_size = 32",
            "config.model.image_size is of the wrong type; it is 2 wh",
        ),
        ("config.data.mean = None", "config.data.mean=None is of the wrong type; it is numbers"),
        ('config.data.mean = ("a", 0, 0)', "config.data.mean=('a', 0, 0) is of the wrong type"),
        ("config.batch_size = True", "config.batch_size=True is of the wrong type; it is a whole"),
        ("config.batch_size = 2.5", "config.batch_size is of the wrong type; it is a whole number"),
        ("config.data.flip = 1", "config.data.flip is of the wrong type; it is True or False"),
        ("config.mesh = 3", "config.mesh is a section; its keys are mesh.data, mesh.fsdp"),
        ("config.model = None", "config.model is a section; its keys are model.activation"),
        ('config.model = {"size": "B"}', "config.model.activation is missing"),
        ('config["model"]["sise"] = "B"', "did you mean config.model.size?"),
        ('config.mode.size = "B"', "did you mean config.model.size?"),
        ('config.data.update({"flop": 1})', "did you mean config.data.flip?"),
        (
            "config.evaluation.max_train_examples = 3",
            "did you mean config.evaluation.max_examples?",
        ),
        ("config.unlock(); config.foo = 3", "config.foo is no key"),
        ("config = {}", "get_config() gives {}, not a ConfigDict"),
        ("raise OSError(2, 'no', 'there')", "FileNotFoundError: [Errno 2] no: 'there'"),
    ],
    ids=lambda given: given[:40],
)
def test_what_a_config_file_sets_wrongly_is_explained_with_its_key(tmp_path, line, message, capsys):
    path = tmp_path / f"wrong_{abs(hash(line))}.py"  # the interpreter caches lines by name
    path.write_text(
        "from ddae_jax.config import pretrain_defaults\n"
        "def get_config():\n"
        "    config = pretrain_defaults()\n"
        f"    {line}\n"
        "    return config\n"
    )
    with pytest.raises(CommandEnded) as ended, explain_bad_input():
        parse(f"--config={path}")
    assert ended.value.code == 2
    shown = capsys.readouterr().err
    assert len(shown.splitlines()) == 1
    assert shown.startswith(f"error: --config={path}")
    assert message in shown
    if " is of the wrong type" in message and "=" not in message:  # told when it was set
        assert f"({path.name}, line 4: {line})" in shown


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("def config(): pass", "get_config"),
        ("def get_config(:", "wrong.py"),
        ("import no_such_module", "no_such_module"),
        ("def get_config(): return None", "wrong.py"),
    ],
    ids=["no function", "no Python", "no such import", "no config"],
)
def test_a_file_that_is_no_config_is_refused_naming_it(tmp_path, body, message):
    path = tmp_path / "wrong.py"
    path.write_text(body + "\n")
    with pytest.raises((ValueError, OSError), match=message) as caught:
        parse(f"--config={path}")
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            "--config.batch_size=many",
            r"config.batch_size='many' is of the wrong type; .* whole number",
        ),
        ("--config.epochs=long", r"config.epochs='long' is of the wrong type; .* number"),
        ("--config.model.image_size=(big,16)", r"model.image_size="),
        ("--config.model.image_size=(16.0,16)", r"model.image_size="),
        ("--config.model.image_size='big'", r"model.image_size="),
        ("--config.data.mean=('a',)", r"data.mean="),
        ("--config.supervision.depths=(1.5,3)", r"supervision.depths="),
        ("--config.data.flip=perhaps", r"config.data.flip='perhaps' .* True or False"),
        ("--config.batch_size=2.5", r"config.batch_size='2.5' .* whole number"),
        (
            "--config.mask=0.5",
            r"config.mask is a section; its keys are mask.kind, mask.min_block_share, mask.ratio",
        ),
        (
            "--config.mask",
            r"config.mask is a section; its keys are mask.kind, mask.min_block_share, mask.ratio",
        ),
        ("--config.epochs", r"--config.epochs has no value; .* is a number, such as 100.0"),
        ("--config.epochs=", r"config.epochs='' is of the wrong type; it is a number"),
        ("--config.epochs=True", r"config.epochs='True' is of the wrong type; it is a number"),
        ("--config.data.flip=3", r"config.data.flip='3' is of the wrong type; it is True or"),
        ("--noconfig.epochs", r"--noconfig.epochs is for keys that are True or False"),
        ("--noconfig.data.flip=1", r"--noconfig.data.flip .* takes no value"),
        ("--config.model.image_size=32", r"2 whole numbers, such as --config.model.*=224,224"),
        ("--config.model.image_size=32x32", r"2 whole numbers, such as --config.model.*=224,224"),
        ("--config.data.channels=3", r"set both, such as .*--config.data.mean=0.485,0.456,0.406"),
        ("--config.data.mean=0,0,0", r"set both, such as .*\(0.5,\).*--config.data.mean=0.5"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_naming_the_right_one(file, given, message):
    with pytest.raises(ValueError, match=message):
        parse(f"--config={file}", given)


def test_a_flag_is_no_value(file):
    with pytest.raises(ValueError, match=r"--config.epochs has no value"):
        parse(f"--config={file}", "--config.epochs", "--workdir=W")


def test_a_value_that_is_not_allowed_is_refused(file):
    with pytest.raises(ValueError, match=r"mask.ratio=1.5"):
        parse(f"--config={file}", "--config.mask.ratio=1.5")
    with pytest.raises(ValueError, match=r"model.size='Bi'; known: "):
        parse(f"--config={file}", "--config.model.size=Bi")


def test_which_defaults_a_run_began_with_is_not_to_be_set(file):
    message = rf"config.defaults_version=1 is not .*set: .*of today are {DEFAULTS_VERSION}$"
    with pytest.raises(ValueError, match=message):
        parse(f"--config={file}", "--config.defaults_version=1")
    today = parse(f"--config={file}", f"--config.defaults_version={DEFAULTS_VERSION}")
    assert today.config.defaults_version == DEFAULTS_VERSION
    path = pathlib.Path(file)
    path.write_text(path.read_text().replace("return", "config.defaults_version = 1\n    return"))
    with pytest.raises(ValueError, match=message):
        parse(f"--config={file}")


def test_an_unknown_flag_is_refused(file):
    with pytest.raises((ValueError, absl_flags.Error), match="wrkdir"):
        parse(f"--config={file}", "--wrkdir=W")


def test_an_argument_that_is_no_flag_is_refused(file):
    with pytest.raises((ValueError, absl_flags.Error), match="'runs/a' is no flag"):
        parse(f"--config={file}", "runs/a")


ALL_KEYS = flatten(pretrain_defaults())
TEXTS = ("0", "-1", "nan", "inf", "-inf", "1e308", "1e-323", "", "x", "()", "0,0", "None", "True")
VALUES = (0, -1, 0.5, math.nan, math.inf, -math.inf, 1e308, "", "x", (), (1,), None, True)
VALUES += (("x", "x"), (None, None), (math.nan, math.nan), [[]], {}, {"a": 1})


def refusal(check, *arguments):
    """What a ``ValueError`` says; None if there is none. Any other error is one of the test."""
    try:
        check(*arguments)
    except ValueError as error:
        return str(error)
    return None


def build_all(config):
    """All that is made of a config alone, before anything is compiled or written."""
    schedule = Schedule(22, 44)
    build_method(config)
    build_optimizer(config, build_learning_rate(config, schedule), schedule)
    assert 1 <= schedule.steps(config.checkpoint.every_epochs) < 2**31
    assert 1 <= schedule.steps(config.log.figures_every_epochs) < 2**31
    json.dumps(to_plain(config), allow_nan=False)


@pytest.mark.slow
@pytest.mark.parametrize("key", ALL_KEYS)
def test_whatever_the_command_line_gives_is_taken_or_refused_by_name(file, key):
    num_refused = 0
    for text in TEXTS:
        argv = (f"--config={file}", f"--config.{key}={text}")
        message = refusal(parse, *argv)
        num_refused += message is not None
        assert message is None or key in message, text
        if message is None:
            build_all(parse(*argv).config)
    assert num_refused or isinstance(ALL_KEYS[key], str)


@pytest.mark.parametrize("key", ALL_KEYS)
def test_whatever_a_file_sets_is_taken_or_refused_by_name(key):
    for value in VALUES:
        config = pretrain_defaults()
        with config.ignore_type():
            config.update_from_flattened_dict({key: value})
        message = refusal(check_config, config)
        assert message is None or key in message, value
        if message is None:
            build_all(config)


# ---- how errors reach the person


@pytest.mark.parametrize(
    "argv",
    [
        ["--workdir=W"],
        ["--config=none.py"],
        ["--config=FILE", "--config.model.sise=B"],
        ["--config=FILE", "--config.batch_size=many"],
        ["--config=FILE", "--config.mask.ratio=7"],
        ["--config=FILE", "--config.model=B"],
        ["--config=FILE", "--config.epochs"],
        ["--config=FILE", "--flagfile=none"],
        ["--config=FILE", "--wrkdir=W"],
        ["--config=FILE", "W"],
    ],
    ids=" ".join,
)
def test_bad_input_ends_with_status_2_and_one_line(argv, file, capsys):
    with pytest.raises(CommandEnded) as ended, explain_bad_input():
        parse(*(given.replace("FILE", file) for given in argv))
    assert ended.value.code == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert len(shown.err.splitlines()) == 1
    assert shown.err.startswith("error: ")


@pytest.mark.parametrize(
    "error", [WorkdirInUse("taken"), CheckpointError("taken"), NotADirectoryError("taken")]
)
def test_other_bad_input_is_explained_too(error, capsys):
    with pytest.raises(CommandEnded) as ended, explain_bad_input():
        raise error
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: taken\n"


@pytest.mark.parametrize(
    "error",
    [
        CheckpointError("why"),
        NonFiniteLoss("why"),
        TooManyCorruptImages("why"),
        BadAnnotation("why"),
        BadLabel("why"),
        OddSize("why"),
        NoMemoryLeft("why"),
        ReadFailed("why"),
        ReadingHangs("why"),
        WorkerLost("why"),
    ],
)
def test_ends_of_a_run_are_explained_with_status_1(error, capsys):
    with pytest.raises(CommandEnded) as ended, explain_run_ends():
        raise error
    assert ended.value.code == 1
    assert capsys.readouterr().err == "error: why\n"


def test_a_full_disk_ends_a_run_with_the_file_named(capsys):
    with pytest.raises(CommandEnded) as ended, explain_run_ends():
        raise OSError(28, "No space left on device", "/runs/a/metrics.jsonl")
    assert ended.value.code == 1
    shown = capsys.readouterr().err
    assert "No space left" in shown
    assert "/runs/a/metrics.jsonl" in shown


@pytest.mark.parametrize("error", [KeyError("bug"), ValueError("bug"), OSError("bug")])
def test_bugs_in_a_run_keep_their_traceback(error):
    with pytest.raises(type(error)), explain_run_ends():
        raise error


def test_bugs_while_reading_input_keep_their_traceback():
    with pytest.raises(ZeroDivisionError), explain_bad_input():
        raise ZeroDivisionError


# ---- the configs that come along


@functools.cache
def parameter_shapes(plain_model):
    """Shapes of a model, once for all configs that share it."""
    method = build_method(plain_model.config)
    channels = plain_model.config.data.channels
    return method, jax.eval_shape(lambda key: method.init(key, channels), jax.random.key(0))


class ModelOf:
    """A config, equal to others that describe the same model."""

    def __init__(self, config):
        self.config = config
        sections = ("model", "decoder", "targets", "supervision", "mask", "tokenizer")
        self._key = repr([config.method, config.data.channels, *(config[s] for s in sections)])

    def __hash__(self):
        return hash(self._key)

    def __eq__(self, other):
        return self._key == other._key


MILLIONS = {
    "micro": (0.6, 0.9),
    "Ti": (5, 6.5),
    "S": (20, 24),
    "B": (84, 90),
    "L": (300, 310),
    "H": (625, 635),
}


@pytest.mark.parametrize("path", DOWNSTREAM, ids=lambda path: path.stem)
def test_every_config_of_what_comes_after_pretraining_is_sound(path):
    (word,) = set(path.stem.split("_")) & JOB_OF_WORD.keys()
    job = JOB_OF_WORD[word]
    flags = cli.parse_config_flags(
        [f"--config={path}", "--config.init_from=somewhere"], USAGE, define, job
    )
    assert check_config(flags.config) is None
    assert ignored_keys(flags.config) == []


@pytest.mark.parametrize(
    "path", [path for path in CONFIGS if path not in DOWNSTREAM], ids=lambda path: path.stem
)
def test_every_config_that_comes_along_is_sound_and_describes_a_model(path, monkeypatch):
    stand_ins.put_in_place(monkeypatch)
    config = parse(f"--config={path}").config
    assert check_config(config) is None
    assert config.keys() == pretrain_defaults().keys()
    method, shapes = parameter_shapes(ModelOf(config))
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes["encoder"]))
    low, high = MILLIONS[config.model.size]
    assert low * 1e6 < count < high * 1e6
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype(jnp.float32)}
    depth, mode = method.encoder.depth, config.supervision.mode
    if config.method == "ddae":
        assert mode == "deep_dynamic"
        assert shapes["supervision"]["beta"].shape == (2, len(method.depths))
        assert method.depths == tuple(round(depth * part / 6) for part in (3, 4, 5, 6))
    elif config.method != "vqkd":
        assert mode == "last"  # as published, unless it is asked for more
        assert method.depths[0] == depth
        deep = parse(f"--config={path}:deep_dynamic").config
        assert (deep.method, deep.supervision.mode) == (config.method, "deep_dynamic")
        assert check_config(deep) is None


# Runs each of several jobs in a process of its own, forked after the imports that all need; keeps
# what they write in a folder, and prints how they end.
ENDS = """
import os, pathlib, sys
from ddae_jax.jobs import exits
folder = pathlib.Path(sys.argv[1])
for number, end in enumerate(sys.argv[2:]):
    child = os.fork()
    if child == 0:
        for stream in (1, 2):
            os.dup2(os.open(folder / f"{number}.{stream}", os.O_WRONLY | os.O_CREAT), stream)
        program = {}
        exec(f'''
import threading, time
def main():
    threading.Thread(target=time.sleep, args=(100,)).start()  # no daemon: Python would wait
    print("said")
    {end}
''', program)
        exits.run(program["main"])
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.mark.slow
def test_a_job_ends_with_its_status_whatever_still_runs(tmp_path):
    ends = {
        "return 0": 0,
        "return 3": 3,
        "raise KeyboardInterrupt": 130,
        "raise SystemExit(2)": 2,
        "raise ZeroDivisionError": 1,
    }
    done = subprocess.run(
        [sys.executable, "-c", ENDS, tmp_path, *ends], capture_output=True, text=True, timeout=60
    )
    assert list(map(int, done.stdout.split())) == list(ends.values()), done.stderr
    for number, end in enumerate(ends):
        assert (tmp_path / f"{number}.1").read_text() == "said\n"
        assert ("Traceback" in (tmp_path / f"{number}.2").read_text()) == ("Zero" in end)


def test_memory_that_is_not_there_is_explained(capsys):
    with pytest.raises(CommandEnded) as ended, explain_run_ends():
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.")
    assert ended.value.code == 1
    told = capsys.readouterr().err
    assert "allocating 9 bytes. Less memory is needed with optimizer.micro_batches=2" in told
    assert "A smaller batch_size or model.size takes a new --workdir" in told


COMPILATION_CACHE_SETTINGS = [
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
]


@pytest.fixture
def compilation_cache_settings():
    """Reads JAX's settings of its cache; those from before the test are put back after it."""

    def read():
        return {name: getattr(jax.config, name) for name in COMPILATION_CACHE_SETTINGS}

    before = read()
    yield read
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture
def compiled(tmp_path):
    """A folder with a compiled program, and halves of others."""
    whole = zlib.compress(b"a program" * 1000)
    (tmp_path / "whole-cache").write_bytes(whole)
    (tmp_path / "half-cache").write_bytes(whole[:20])
    (tmp_path / "empty-cache").write_bytes(b"")
    (tmp_path / "whole-atime").write_bytes(b"12345678")
    return tmp_path


def test_halves_of_compiled_programs_are_removed_as_nobody_would_replace_them(
    compiled, compilation_cache_settings, monkeypatch
):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    devices.use_compilation_cache(compiled)
    assert sorted(path.name for path in compiled.iterdir()) == ["whole-atime", "whole-cache"]
    assert compilation_cache_settings()["jax_compilation_cache_dir"] == str(compiled)


def test_a_folder_for_compiled_programs_that_the_environment_names_is_used_and_left_as_it_is(
    compiled, compilation_cache_settings, monkeypatch
):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(compiled))
    files, settings = sorted(compiled.iterdir()), compilation_cache_settings()
    devices.use_compilation_cache(compiled / "run" / "compilation_cache")
    devices.use_compilation_cache(compiled)
    assert sorted(compiled.iterdir()) == files
    assert compilation_cache_settings() == settings
