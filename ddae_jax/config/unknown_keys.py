"""Messages for keys that no config has: the nearest known key, or those of the section."""

import difflib

from ddae_jax.config.defaults import WORDS, defaults_by_key
from ddae_jax.config.earlier import RENAMED

_CALLED_ELSEWHERE = {
    "lr": "learning_rate",
    "blr": "learning_rate",
    "base_lr": "learning_rate",
    "min_lr": "end_learning_rate",
    "wd": "weight_decay",
    "bs": "batch_size",
    "accum_iter": "micro_batches",
    "grad_accum": "micro_batches",
    "gradient_accumulation_steps": "micro_batches",
    "clip_grad": "clip_norm",
    "num_epochs": "epochs",
    "input_size": "image_size",
    "img_size": "image_size",
    "resolution": "image_size",
    "mask_ratio": "mask.ratio",
    "norm_pix_loss": "normalize_pixels",
    "workers": "num_workers",
    "data_path": "data_dir",
    "resume": "init_from",
    "finetune": "init_from",
    "pretrained": "init_from",
    "ema_decay": "momentum_start",
    "drop_path": "drop_path_rate",
    "nb_classes": "num_classes",
    "warmup": "warmup_epochs",
    "warmup_steps": "warmup_epochs",
    "warmup_iters": "warmup_epochs",
    "betas": ("b1", "b2"),
    "beta1": "b1",
    "beta2": "b2",
    "path": "data_dir",
    "root": "data_dir",
    "folder": "data_dir",
    "dataset_path": "data_dir",
    "max_epochs": "epochs",
    "arch": "model.size",
}
"""Last names of keys in other packages, and the names of the same keys here."""

_WORKDIR_ELSEWHERE = ("workdir", "output_dir", "out_dir", "output", "save_dir", "log_dir")
"""Last names of keys in other packages that are the flag ``--workdir`` here."""


def unknown_key(key: str, job: str = "pretrain") -> str:
    """Returns the message for a key that no config of a job has.

    It names the nearest known keys, or all of the section if no key is near.
    """
    known = list(defaults_by_key(job))
    below = [name for name in known if name.startswith(f"{key}.")]
    if below:
        return f"config.{key} is a section; its keys are {', '.join(below)}"
    near = _nearest_keys(key, known)
    if _last_name(key) in _WORKDIR_ELSEWHERE:
        hint = "did you mean --workdir=FOLDER?"
    elif near:
        hint = f"did you mean {' or '.join(f'config.{name}' for name in near)}?"
    else:
        beside = [name for name in known if name.startswith(f"{key.rpartition('.')[0]}.")]
        hint = f"known: {', '.join(beside or known)}"
    return f"config.{key} is no key of a {WORDS[job]} config; {hint}"


def _last_name(key: str) -> str:
    return key.rpartition(".")[2].lower().replace("-", "_").strip("_")


def _nearest_keys(key: str, known: list[str]) -> list[str]:
    """Returns the key that is meant; several if that is undecided, none if no key is near."""
    elsewhere = _CALLED_ELSEWHERE.get(_last_name(key), ())
    names = (elsewhere,) if isinstance(elsewhere, str) else elsewhere
    same = [name for name in known if f".{name}".endswith(tuple(f".{own}" for own in names))]
    if same:
        return same
    renamed = {older: name for older, name in RENAMED.items() if name in known}
    if key in renamed:
        return [renamed[key]]
    parents = [name for name in known if key.startswith(f"{name}.")]
    if parents:
        return parents
    current = {name: name for name in known} | renamed
    section, _, leaf = key.rpartition(".")
    of_that_name = [name for name in current if name.rpartition(".")[2] == leaf]
    if of_that_name:
        in_like_section = difflib.get_close_matches(key, of_that_name, n=1, cutoff=0.8)
        return [current[name] for name in (section and in_like_section) or of_that_name]
    near = difflib.get_close_matches(key, current, n=1, cutoff=0.7)
    if not near:
        leaves = {name.rpartition(".")[2]: name for name in current}
        near = [leaves[name] for name in difflib.get_close_matches(leaf, leaves, n=1)]
    return [current[name] for name in near]
