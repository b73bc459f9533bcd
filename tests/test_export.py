"""The command that exports a run's encoder, knowing only the workdir."""

import hashlib
import json
import types

import jax
import numpy as np
import pytest

import stand_ins
import tiny
from ddae_jax import export
from ddae_jax.builders.data import decoding
from ddae_jax.builders.methods import build_method
from ddae_jax.builders.networks import build_encoder
from ddae_jax.builders.pretrained import load_pretrained
from ddae_jax.builders.restore import restore_encoder
from ddae_jax.config import finetune_defaults, from_plain, pretrain_defaults, to_plain
from ddae_jax.data.sources import make_source
from ddae_jax.interop.backbones import read_backbone
from ddae_jax.interop.digests import DamagedWeights
from ddae_jax.interop.weight_files import read_weights
from ddae_jax.interop.weights_to_params import transformers_mae
from ddae_jax.jobs import card_code, model_card
from ddae_jax.jobs.cli import CommandEnded, parse_config_flags
from ddae_jax.models import vit
from ddae_jax.models.vit import ViT
from ddae_jax.training.checkpoint import Checkpoints
from ddae_jax.training.sharding import make_mesh
from ddae_jax.training.workdir import Workdir

MAE = ("--config.method=mae", "--config.model.encoder_input=visible", "--config.decoder.width=8")
MAE += ("--config.decoder.depth=1", "--config.decoder.num_heads=2", "--config.decoder.kind=self")
UNUSUAL = ("--config.model.use_class_token=False", "--config.model.relative_positions=shared")
UNUSUAL += ("--config.model.encoder_input=full",)


@pytest.fixture(autouse=True)
def size(monkeypatch):
    """What the tiny config calls micro, also where a stored config is read."""
    monkeypatch.setitem(vit.SIZES, "micro", vit.Size(16, 3, 2))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of DDAE; and what runs of MAE, and of no library's encoder, leave at their start."""
    folder = tmp_path_factory.mktemp("runs")
    config = tiny.write_config(tmp_path_factory.mktemp("config"))
    tiny.copy_of_short_run(folder / "ddae")
    for name, changes in {"mae": MAE, "unusual": UNUSUAL}.items():
        given = [f"--config={config}", *changes]
        begin(folder / name, parse_config_flags(given, "begin", lambda _: None))
    return folder


def begin(path, flags):
    """Writes config and checkpoint of a run that has not trained yet."""
    workdir, method = Workdir(path), build_method(flags.config)
    workdir.claim()
    workdir.write_config(to_plain(flags.config))
    params = stand_ins.parameters(
        lambda: method.init(jax.random.key(0), flags.config.data.channels)
    )
    state = {"params": params, "teacher": method.init_teacher(params)}
    with Checkpoints(workdir.checkpoints) as checkpoints:
        checkpoints.save(state, 0, {})
    workdir.release()


def run(workdir, out, *arguments):
    assert export.main([f"--workdir={workdir}", f"--out={out}", *arguments]) == 0
    return out


def config_of(workdir):
    return from_plain(json.loads((workdir / "config.json").read_text()))


def stored(workdir, encoder="student", step=None):
    """The run's encoder and its parameters."""
    config = config_of(workdir)
    config.evaluation.encoder = encoder
    params, *_ = restore_encoder(Workdir(workdir), config, make_mesh(), step)
    return build_encoder(config), jax.tree.map(np.asarray, params)


def assert_same_features(folder, encoder, params):
    found = read_backbone(folder)
    images = np.random.default_rng(0).normal(size=(2, 16, 16, 1)).astype(np.float32)
    np.testing.assert_allclose(
        jax.jit(ViT(**found.options).apply)({"params": found.params}, images).tokens,
        jax.jit(encoder.clone().apply)({"params": params}, images).tokens,
        atol=1e-5,
    )


@pytest.mark.parametrize(
    ("library", "network"), [("timm", "VisionTransformer"), ("transformers", "ViTModel")]
)
def test_a_run_is_exported_and_told(library, network, runs, tmp_path, capsys):
    out = run(runs / "ddae", tmp_path / "new" / "out", f"--format={library}")
    lines = capsys.readouterr().out.splitlines()
    told = json.loads(lines[-1])
    assert told["network"] == network
    assert (told["format"], told["encoder"], told["step"]) == (library, "student", 8)
    assert f"{out}" in lines[-2]
    assert_same_features(out, *stored(runs / "ddae"))
    found = read_backbone(out)
    assert (found.mean, found.std) == ((0.5,), (0.5,))
    files = {"model.safetensors", "config.json", "README.md"}
    files |= {"preprocessor_config.json"} if library == "transformers" else set()
    assert {path.name for path in out.iterdir()} == files
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_teacher_and_step_can_be_asked_for(runs, tmp_path, capsys):
    steps = sorted(
        int(p.name) for p in (runs / "ddae" / "checkpoints").iterdir() if p.name.isdigit()
    )
    arguments = ("--format=timm", "--encoder=teacher", f"--step={steps[0]}", "--pool=class_token")
    out = run(runs / "ddae", tmp_path / "out", *arguments)
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["step"] == steps[0]
    assert_same_features(out, *stored(runs / "ddae", "teacher", steps[0]))
    assert json.loads((out / "config.json").read_text())["global_pool"] == "token"


@pytest.mark.slow
def test_mae_is_exported_as_a_plain_encoder_and_on_request_with_its_decoder(runs, tmp_path):
    out = run(runs / "mae", tmp_path / "plain", "--format=transformers")
    config = json.loads((out / "config.json").read_text())
    assert (config["architectures"], config["model_type"]) == (["ViTModel"], "vit")
    assert_same_features(out, *stored(runs / "mae"))
    out = run(runs / "mae", tmp_path / "whole", "--format=transformers", "--decoder")
    whole = transformers_mae(read_weights(out / "model.safetensors"))
    assert set(whole) == {"encoder", "decoder", "head"}
    assert whole["head"]["kernel"].shape == (8, 16)
    config = json.loads((out / "config.json").read_text())
    assert config["architectures"] == ["ViTMAEForPreTraining"]
    assert (config["mask_ratio"], config["norm_pix_loss"]) == (0.5, True)
    assert_same_features(out, *stored(runs / "mae"))
    out = run(runs / "mae", tmp_path / "alone", "--format=timm")
    assert_same_features(out, *stored(runs / "mae"))


def test_what_was_exported_can_be_gone_on_with(runs, tmp_path):
    out = run(runs / "ddae", tmp_path / "out", "--format=timm")
    found = load_pretrained(str(out))
    assert (found.model["size"], found.model["positions"]) == ("micro", "learned")
    assert found.mean == (0.5,)


@pytest.mark.parametrize("library", ["timm", "transformers"])
def test_what_cannot_be_exported_leaves_nothing(library, runs, tmp_path, capsys):
    with pytest.raises(CommandEnded) as ended:
        run(runs / "unusual", tmp_path / "out", f"--format={library}")
    assert ended.value.code == 2
    assert "use_class_token=False" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_holds_something_is_left_alone(runs, tmp_path, capsys):
    for out in (tmp_path / "folder", tmp_path / "file" / "note.txt"):
        out.parent.mkdir(exist_ok=True)
        (out.parent / "folder").mkdir(exist_ok=True)
        (tmp_path / "folder" / "note.txt").write_text("mine")
        (tmp_path / "file").mkdir(exist_ok=True)
        (tmp_path / "file" / "note.txt").write_text("mine")
        with pytest.raises(CommandEnded) as ended:
            run(runs / "ddae", out, "--format=timm")
        assert ended.value.code == 2
        assert f"--out={out} is there already" in capsys.readouterr().err
    assert (tmp_path / "folder" / "note.txt").read_text() == "mine"


def test_an_empty_folder_is_filled(runs, tmp_path):
    (tmp_path / "out").mkdir()
    assert (run(runs / "ddae", tmp_path / "out", "--format=timm") / "config.json").is_file()


def test_writing_that_fails_leaves_nothing(runs, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("the disk is full")

    monkeypatch.setattr("ddae_jax.export.model_card", fail)
    with pytest.raises(CommandEnded):
        run(runs / "ddae", tmp_path / "out", "--format=timm")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--format=onnx"], "<timm|transformers>"),
        (["--format=timm", "--step=3"], "no checkpoint of step 3"),
        (["--format=timm", "--encoder=both"], "<student|teacher>"),
        ([], "--format=timm|transformers is missing"),
        (["--format=transformers", "--decoder"], "kind that transformers lacks (decoder.kind='cro"),
    ],
)
def test_bad_input_is_explained(arguments, reason, runs, tmp_path, capsys):
    with pytest.raises(CommandEnded) as ended:
        run(runs / "ddae", tmp_path / "out", *arguments)
    assert ended.value.code == 2
    assert reason in capsys.readouterr().err


def test_runs_that_are_none_or_of_another_job_or_have_no_teacher_are_named(runs, tmp_path, capsys):
    finetuned = tmp_path / "finetuned"
    Workdir(finetuned).claim()
    Workdir(finetuned).write_config(to_plain(finetune_defaults()))
    for workdir, arguments, reason in (
        (tmp_path, (), "holds no run"),
        (finetuned, (), "is a run of ddae_jax.finetune"),
        (runs / "mae", ("--encoder=teacher",), "evaluation.encoder='teacher' needs a teacher"),
    ):
        with pytest.raises(CommandEnded):
            run(workdir, tmp_path / "out", "--format=timm", *arguments)
        assert reason in capsys.readouterr().err


def test_the_card_says_how_it_was_trained_read_and_loaded(runs, tmp_path):
    card = (run(runs / "mae", tmp_path / "out", "--format=timm") / "README.md").read_text()
    front = card.split("---")[1]
    assert "library_name: timm" in front
    assert "license" not in front
    for row in (
        "| method | mae |",
        "| supervision | deep_dynamic |",
        "| dataset | digits |",
        "| epochs planned | 2 |",
        "| step | 0 |",
        "| batch | 64 |",
        "| `mask.ratio` | `0.5` |",
        "| mean | 0.5 |",
        "| input | 16 x 16 pixels, 1 channels, values from 0 to 1 |",
        "| patch | 4 x 4 pixels |",
    ):
        assert row in card
    assert 'timm.create_model("local-dir:out", pretrained=True)' in card
    assert '.convert("L")' in card
    assert "ImageOps.exif_transpose" in card
    assert "arXiv:2111.06377" in card  # MAE
    assert "doi:10.1609/aaai.v38i2.27864" in card  # its supervision's
    assert str(runs) not in card
    assert str(tmp_path) not in card
    assert "teacher.momentum" not in card  # MAE has none


def test_the_card_of_a_whole_mae_says_how_to_see_all_patches(runs, tmp_path):
    out = run(runs / "mae", tmp_path / "out", "--format=transformers", "--decoder")
    card = (out / "README.md").read_text()
    assert 'AutoModel.from_pretrained("out", mask_ratio=0.0)' in card
    assert "tokens[:, 1:].mean(dim=1)" in card


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        # Its decoder has gone on without pixels.
        (
            {"targets.pixel_fade": 1.0},
            r"went on without predicting pixels \(targets.pixel_fade=1\)",
        ),
        ({"targets.pixel_fade": 1.0, "targets.feature_weight": 0.0}, None),
        ({"targets.pixel_weight": 0.0}, "predicts no pixels"),
        ({"decoder.kind": "cross"}, "decoder.kind='cross'"),
        ({"model.encoder_input": "full"}, "has none .*'full'"),
        ({"evaluation.encoder": "teacher"}, "not the teacher's"),
    ],
)
def test_a_decoder_is_exported_if_it_is_maes_and_predicts_pixels_to_the_end(changes, reason):
    config = pretrain_defaults()
    config.update_from_flattened_dict({"decoder.kind": "self", "targets.pixel_fade": 0.5} | changes)
    if reason is None:
        export._check_has_decoder(config, "transformers", imported=False)
    else:
        with pytest.raises(ValueError, match=f"--decoder asks for MAE's decoder, but .*{reason}"):
            export._check_has_decoder(config, "transformers", imported=False)
    with pytest.raises(ValueError, match="--format=timm has no network with one; without --decod"):
        export._check_has_decoder(config, "timm", imported=False)
    with pytest.raises(ValueError, match="weights that were imported come without one"):
        export._check_has_decoder(config, "transformers", imported=True)


def test_what_is_damaged_on_the_way_is_refused_by_name(runs, tmp_path):
    out = run(runs / "ddae", tmp_path / "out", "--format=timm")
    file = out / "model.safetensors"
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert digest in (out / "README.md").read_text()
    stored = bytearray(file.read_bytes())
    stored[-1] ^= 1  # of the last array, a bit
    file.write_bytes(stored)
    with pytest.raises(
        DamagedWeights, match=r"out/model\.safetensors is damaged, .*: \S+ is not w"
    ):
        load_pretrained(str(out))


def test_how_evaluation_shows_images_is_what_the_libraries_are_told(runs, tmp_path):
    """Digits have another size than the encoder sees: 16 of 18 pixels, as ever."""
    assert config_of(runs / "ddae").evaluation.crop_share == 0.875
    out = run(runs / "ddae", tmp_path / "timm", "--format=timm")
    told = json.loads((out / "config.json").read_text())["pretrained_cfg"]
    assert (told["crop_pct"], told["crop_mode"], told["interpolation"]) == (
        0.875,
        "center",
        "bicubic",
    )
    out = run(runs / "ddae", tmp_path / "transformers", "--format=transformers")
    told = json.loads((out / "preprocessor_config.json").read_text())
    assert told["size"] == {"shortest_edge": 18}
    assert "left, top = round((width - 16) / 2)" in (out / "README.md").read_text()


def test_a_run_of_before_shows_small_images_whole_and_its_card_says_so(runs, tmp_path):
    stored = json.loads((runs / "mae" / "config.json").read_text())
    assert stored["evaluation"]["crop_share"] == 0  # it has not begun: nothing is settled
    card = (run(runs / "mae", tmp_path / "out", "--format=timm") / "README.md").read_text()
    assert "but for images that have the input's size already: of them it shows all" in card
    card = (run(runs / "ddae", tmp_path / "other", "--format=timm") / "README.md").read_text()
    assert "of them it shows all" not in card


def test_the_norm_of_the_mean_can_be_asked_for(runs, tmp_path):
    out = run(runs / "ddae", tmp_path / "out", "--format=timm", "--pool=normed_mean")
    assert json.loads((out / "config.json").read_text())["model_args"]["fc_norm"] is True
    assert read_backbone(out).pool == "normed_mean"
    assert "before the final norm; features of the image are that norm of their mean" in (
        out / "README.md"
    ).read_text().replace("\n", " ")


@pytest.mark.parametrize("library", ["timm", "transformers"])
def test_the_card_of_other_channels_loads_arrays(library):
    config = pretrain_defaults()
    config.data.channels, config.data.mean, config.data.std = 2, (0.5, 0.25), (0.1, 0.2)
    subject = types.SimpleNamespace(library=library, folder="exported", network="ViTModel")
    told = card_code.code_to_load(subject, config)
    compile(told, "card", "exec")
    assert "# An array of shape (2, 224, 224)" in told
    assert "in ((0.5, 0.25), (0.1, 0.2)))" in told
    assert ".convert(" not in told


@pytest.mark.parametrize("max_value", [0.0, 10_000.0])
@pytest.mark.parametrize(
    ("dtype", "most"), [("uint8", 255), ("uint16", 3000), ("int32", 90_000), ("float32", 1.2)]
)
def test_arrays_are_scaled_by_the_card_as_by_evaluation(dtype, most, max_value, tmp_path):
    config = pretrain_defaults()
    config.data.channels, config.data.mean, config.data.std = 2, (0.5, 0.25), (0.1, 0.2)
    config.data.max_value = max_value
    subject = types.SimpleNamespace(library="timm", folder="exported", network="ViTModel")
    code = card_code.code_to_load(subject, config)
    values = (np.random.default_rng(0).random((2, 8, 9)) * most).astype(dtype)
    np.save(tmp_path / "image.npy", values)
    lines = code[code.index("values =") : code.index("mean, std")]
    scope = {"numpy": np}
    exec(lines.replace("image.npy", str(tmp_path / "image.npy")), scope)
    source = make_source("folder", data_dir=str(tmp_path), **decoding(config))
    np.testing.assert_array_equal(np.moveaxis(scope["values"], 0, -1), source[0]["image"])


@pytest.mark.parametrize("library", ["timm", "transformers"])
def test_the_card_says_how_images_of_more_bits_are_scaled(library):
    config = pretrain_defaults()
    subject = card_code.Subject(library, "ViTModel", "exported", "student", 1, True)
    told = model_card.model_card(subject, config)
    assert "each by its own range" in told
    assert "transform here does it all." not in told
    config.data.max_value = 4095.0
    told = model_card.model_card(subject, config)
    assert "so that 4095 becomes 255" in told
    config.data.channels, config.data.mean, config.data.std = 2, (0.5, 0.25), (0.1, 0.2)
    told = model_card.model_card(subject, config)
    assert "so that 4095 becomes 255" in told
    assert "transform here" not in told
