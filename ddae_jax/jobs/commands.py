"""The command lines of all commands: their flags, and what ``--help`` says.

Nothing here imports JAX: a command answers ``--help`` before its other imports, which take seconds.
"""

import sys
from collections.abc import Callable, Mapping
from types import MappingProxyType

from absl import flags as absl_flags

from ddae_jax.config.keys import ALL_KEYS
from ddae_jax.jobs import cli
from ddae_jax.methods import summaries

FORMATS = ("timm", "transformers")
"""Libraries that ``ddae_jax.export`` writes for."""

_COMMON_OPTIONS = {"workdir", "task", "step", "batch_size", "dtype", "limit", "data_dir"}
_COMMON_OPTIONS |= {"distributed"}
_FEATURE_OPTIONS = {"encoder", "pool"}

TASK_OPTIONS: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        task: frozenset(_COMMON_OPTIONS | own)
        for task, own in {
            "knn": _FEATURE_OPTIONS | {"depth", "k", "temperature"},
            "linear": _FEATURE_OPTIONS | {"depth"},
            "few_shot": _FEATURE_OPTIONS | {"depth"},
            "depths": _FEATURE_OPTIONS | {"k", "temperature"},
            "attention_distance": {"encoder", "compare"},
            "embed": _FEATURE_OPTIONS | {"depth", "out", "images", "split"},
            "classification": {"split"},
            "segmentation": {"split", "scales", "flip"},
        }.items()
    }
)
"""The options of ``ddae_jax.evaluate`` that each of its tasks uses."""


def usage(name: str, text: str) -> str:
    """Returns the text that ``--help`` shows before a command's flags.

    Args:
        name: of the command.
        text: what it does, such as the docstring of its module.
    """
    lines = f"ddae_jax.{name} {text.strip()}\n"
    if name == "pretrain":
        methods = (f"    {method:9} {summary}" for method, summary in summaries().items())
        lines += "\nMethods (--config.method):\n\n" + "\n".join(methods) + "\n"
    return lines


def answer_help(name: str, text: str) -> None:
    """Shows the help of a command and ends, if its command line asks for that.

    Args:
        name, text: see :func:`usage`.
    """
    if not cli.asks_for_help(sys.argv[1:]):
        return
    define, job = COMMANDS[name]
    if job == "":
        cli.parse_flags(None, usage(name, text), define)
    else:
        cli.read_config_flags(None, usage(name, text), define, job)


def define_job(flags: absl_flags.FlagValues) -> None:
    """Adds the flags of a command that trains, beside those of its config."""
    absl_flags.DEFINE_string(
        "workdir", None, "Folder of the run; it is made, or continued.", flag_values=flags
    )
    cli.require("workdir", "FOLDER", flags)
    absl_flags.DEFINE_bool(
        "allow_config_changes",
        False,
        "Continue a run although its config, or its data, differs.",
        flag_values=flags,
    )
    absl_flags.DEFINE_bool(
        "distributed",
        False,
        "One of several processes, as on a TPU pod or under SLURM: join the others first.",
        flag_values=flags,
    )
    for name, kind, text in (
        ("coordinator", "string", "HOST:PORT of the first process, where no scheduler tells it."),
        ("num_processes", "integer", "Processes of the run, with --coordinator."),
        ("process_id", "integer", "Which of them this is, from 0, with --coordinator."),
    ):
        getattr(absl_flags, f"DEFINE_{kind}")(name, None, text, flag_values=flags)


def define_evaluate(flags: absl_flags.FlagValues) -> None:
    """Adds the flags of ``ddae_jax.evaluate``."""

    def define(kind: str, name: str, default, *arguments) -> None:
        getattr(absl_flags, f"DEFINE_{kind}")(name, default, *arguments, flag_values=flags)

    define("string", "workdir", None, "Folder of the run.")
    define("enum", "task", None, list(TASK_OPTIONS), "What to evaluate.")
    cli.require("workdir", "FOLDER", flags)
    cli.require("task", "|".join(TASK_OPTIONS), flags)

    def of_the_run(kind: str, name: str, *arguments) -> None:
        *others, text = arguments
        define(kind, name, None, *others, f"{text} (default: evaluation.{name} of the run)")

    others = "Other runs' folders, by commas; FOLDER@STEP for a checkpoint before the latest"
    define("list", "compare", [], f"{others}, also of the same run (attention_distance).")
    of_the_run("enum", "encoder", ("student", "teacher"), "Whose features or attention.")
    of_the_run("integer", "depth", "Block to read after; 0 for the last.")
    pools = ALL_KEYS["evaluation.pool"].words
    of_the_run("enum", "pool", pools, "Mean of normed patches, class token, or normed mean.")
    define("integer", "step", None, "Of --workdir's checkpoint; the latest by default.")
    of_the_run("integer", "k", "Neighbours that vote (knn).")
    of_the_run("float", "temperature", "Of their votes; 0 for equal ones (knn).")
    of_the_run("integer", "batch_size", "Images encoded at a time.")
    whose = "Of the computation (default: model.dtype of the run)."
    define("enum", "dtype", None, ALL_KEYS["model.dtype"].words, whose)
    define("integer", "limit", 0, "At most so many images of each set, spread evenly; 0 for all.")
    define("string", "out", None, "File that features are written to: .npz or .parquet (embed).")
    define("string", "images", None, "Folder of images, instead of the run's data (embed).")
    define("string", "split", None, "Of the run's data; its test split by default (embed, ...).")
    define("list", "scales", [], "Of the image, by commas; results are averaged (segmentation).")
    define("bool", "flip", False, "Average results of the mirror image in (segmentation).")
    define("string", "data_dir", None, "Where the data is now, if it has moved.")
    define("bool", "distributed", False, "One of several processes: join the others first.")


def define_export(flags: absl_flags.FlagValues) -> None:
    """Adds the flags of ``ddae_jax.export``."""

    def define(kind: str, name: str, *arguments) -> None:
        getattr(absl_flags, f"DEFINE_{kind}")(name, None, *arguments, flag_values=flags)

    define("string", "workdir", "Folder of the run.")
    define("enum", "format", FORMATS, "The library that is to load it.")
    define("string", "out", "Folder to write; a new or an empty one.")
    cli.require("workdir", "FOLDER", flags)
    cli.require("format", "|".join(FORMATS), flags)
    cli.require("out", "FOLDER", flags)
    of_the_run = "(default: evaluation.{} of the run)"
    whose = f"Which one {of_the_run.format('encoder')}."
    define("enum", "encoder", ("student", "teacher"), whose)
    what = f"How the card pools, and timm's network {of_the_run.format('pool')}."
    define("enum", "pool", ALL_KEYS["evaluation.pool"].words, what)
    define("bool", "decoder", "Export MAE's decoder and head too, as ViTMAEForPreTraining.")
    define("integer", "step", "Of the checkpoint; the latest by default.")


def define_compile_check(flags: absl_flags.FlagValues) -> None:
    """Adds the flags of ``ddae_jax.compile_check``, beside those of its config."""

    def define(kind: str, name: str, default, text: str, **options) -> None:
        getattr(absl_flags, f"DEFINE_{kind}")(name, default, text, flag_values=flags, **options)

    topology_help = "Such as v5e:16x16 or h100:8; the devices of this machine if empty."
    define("string", "topology", "", topology_help)
    define("string", "out", "", "JSON file to write all results to.")
    define("bool", "search", False, "Also find the largest batch that fits (compiles often).")
    share_help = "Share of the highest possible speed that a run is expected to reach."
    define("float", "share", 0.5, share_help, lower_bound=0.01)
    images_help = "Number of images of an epoch; ImageNet's by default."
    define("integer", "num_images", 1_281_167, images_help, lower_bound=1)
    define("integer", "num_classes", 1000, "Number of classes, for fine-tuning.", lower_bound=2)
    size_help = "HEIGHT,WIDTH of stored images, if they are augmented on the device."
    define("list", "stored_image_size", [], size_help)


def define_import_weights(flags: absl_flags.FlagValues) -> None:
    """Adds the flags of ``ddae_jax.import_weights``, beside those of its config."""
    absl_flags.DEFINE_string("workdir", None, "Folder that is made.", flag_values=flags)
    cli.require("workdir", "FOLDER", flags)


def define_pixel_statistics(flags: absl_flags.FlagValues) -> None:
    """Adds the flags of ``ddae_jax.pixel_statistics``, beside those of its config."""
    absl_flags.DEFINE_integer(
        "limit", 10_000, "At most so many images, spread evenly.", flag_values=flags
    )


COMMANDS: Mapping[str, tuple[Callable[[absl_flags.FlagValues], None], str | None]] = (
    MappingProxyType(
        {
            "pretrain": (define_job, "pretrain"),
            "finetune": (define_job, "finetune"),
            "segment": (define_job, "segment"),
            "evaluate": (define_evaluate, ""),
            "export": (define_export, ""),
            "import_weights": (define_import_weights, "pretrain"),
            "compile_check": (define_compile_check, None),
            "pixel_statistics": (define_pixel_statistics, None),
        }
    )
)
"""For each command, the function that adds its flags, and the job of its config.

The job is None if the command takes any config, and empty if it takes none.
"""
