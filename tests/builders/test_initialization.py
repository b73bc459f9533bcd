"""Runs begin with what somebody else has trained: told where weights do not tell, and with MAE's
decoder where it is asked for."""

import json
import logging
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import golden_arrays
from ddae_jax.builders import pretrained
from ddae_jax.builders.initialization import inherit_architecture, initial_decoder, initial_params
from ddae_jax.builders.methods import build_method
from ddae_jax.builders.pretrained import load_pretrained
from ddae_jax.builders.tokenizers import load_teacher
from ddae_jax.config import finetune_defaults, pretrain_defaults
from ddae_jax.config.checks import check_config, ignored_keys
from ddae_jax.interop.architecture import WeightHints
from ddae_jax.jobs.job import DataSpec
from ddae_jax.models import vit
from ddae_jax.pretrain import PretrainJob
from ddae_jax.training.sharding import make_mesh

PUBLISHED = golden_arrays.FOLDER / "published"
MAE_FILE = golden_arrays.FOLDER / "torch_files" / "mae.pth"
MEAN, STD = [0.1, 0.2, 0.3], [0.5, 0.4, 0.3]


@pytest.fixture
def mae(tmp_path, monkeypatch):
    """A whole MAE as transformers saves it, and a config that goes on with it."""
    monkeypatch.setitem(vit.SIZES, "micro", vit.Size(32, 2, 2))
    arrays, weights = golden_arrays.load("mae")
    folder = tmp_path / "mae"
    folder.mkdir()
    save_file(weights, folder / "model.safetensors")
    of_model = {"num_attention_heads": 2, "image_size": 16, "layer_norm_eps": 1e-6}
    config = {"model_type": "vit_mae", "decoder_num_attention_heads": 2} | of_model
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": MEAN, "image_std": STD})
    )
    return folder, arrays


def config_of(folder, **changes):
    config = pretrain_defaults()
    config.update_from_flattened_dict(
        {
            "init_from": str(folder),
            "init_decoder": True,
            "method": "mae",
            "model.size": "micro",
            "model.image_size": (16, 16),
            "model.patch_size": 4,
            "model.dtype": "float32",
            "decoder.kind": "self",
            "decoder.width": 24,
            "decoder.depth": 1,
            "decoder.num_heads": 2,
            "supervision.mode": "last",
            **changes,
        }
    )
    return config


@pytest.mark.slow
def test_an_mae_goes_on_with_its_decoder_as_it_was(mae):
    folder, arrays = mae
    config = config_of(folder)
    job = PretrainJob(config, initial=inherit_architecture(config, None))
    program = job.program(job.schedule(512), DataSpec())
    state = program.init_state(make_mesh(), job.take_initial_params(program))
    assert job.initial is None
    found = golden_arrays.predict(program.task, state.params, arrays["images"], arrays["mask"])
    np.testing.assert_allclose(found["pixels"][0], arrays["predictions"], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decoder.width": 32}, "set method='mae', decoder.width=24, decoder.depth=1"),
        ({"decoder.depth": 2}, "decoder.depth=1"),
        ({"decoder.num_heads": 4}, "decoder.num_heads=2"),
        ({"method": "ddae"}, r"method='mae'.*head/bias: \(48,\) there, \(80,\) in the model"),
    ],
)
def test_a_decoder_that_is_not_the_run_s_is_refused_with_what_it_is(changes, message, mae):
    config = config_of(mae[0], **changes)
    inherit_architecture(config, None)
    with pytest.raises(ValueError, match=rf"(?s)init_decoder=True: the decoder in .*{message}"):
        initial_decoder(config, build_method(config))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.encoder_input": "full"}, "model.encoder_input='full'.*'visible'"),
        ({"decoder.kind": "cross"}, "decoder.kind='cross'.*'self'"),
        ({"decoder.is_shared": False, "supervision.mode": "deep"}, "is for decoder.is_shared=True"),
    ],
)
def test_a_decoder_that_has_no_place_is_refused_by_the_config_alone(changes, message):
    with pytest.raises(ValueError, match=f"init_decoder=True, .*{message}"):
        check_config(config_of("anywhere", **changes))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (PUBLISHED / "deit3.pth", "has no decoder of an MAE: .*of an encoder only"),
        (PUBLISHED / "transformers_ijepa", "has no decoder of an MAE: it is no vit_mae"),
    ],
)
def test_weights_without_a_decoder_have_none_to_take(path, message):
    with pytest.raises(ValueError, match=message):
        pretrained.load_decoder(str(path), WeightHints())


def test_a_run_s_decoder_is_that_of_its_own_folder(tmp_path):
    with pytest.raises(ValueError, match="is a run: .*give its own folder as --workdir"):
        pretrained.load_decoder(str(tmp_path), WeightHints())


def test_what_is_told_of_a_file_is_what_it_is_read_with(monkeypatch, caplog):
    monkeypatch.setitem(vit.SIZES, "micro", vit.Size(16, 2, 2))
    config = finetune_defaults()
    config.init_from = str(MAE_FILE)
    with pytest.raises(ValueError, match=r"does not tell the heads .*--config\.init_heads=HEADS"):
        inherit_architecture(config, None)
    config.init_heads, config.init_activation = 2, "quick_gelu"
    found = inherit_architecture(config, None)
    assert (config.model.size, config.model.activation) == ("micro", "quick_gelu")
    assert not [record for record in caplog.records if "gelu is taken" in record.message]
    assert initial_params(config, found)["encoder"]["class_token"].shape == (16,)


def test_what_is_taken_for_granted_is_said_once(monkeypatch, caplog):
    monkeypatch.setitem(vit.SIZES, "micro", vit.Size(16, 2, 2))
    config = pretrain_defaults()
    config.init_from, config.init_heads, config.model.image_size = str(MAE_FILE), 2, (8, 8)
    config.model.patch_size = 4
    with caplog.at_level(logging.WARNING):
        initial_params(config, inherit_architecture(config, None))
    said = [record.message for record in caplog.records if "gelu is taken" in record.message]
    assert len(said) == 1
    assert "--config.init_activation says otherwise" in said[0]


def test_images_of_other_channels_are_named_for_what_they_are(monkeypatch):
    monkeypatch.setitem(vit.SIZES, "micro", vit.Size(16, 2, 2))
    config = finetune_defaults()
    config.init_from, config.init_heads = str(MAE_FILE), 2
    config.data.channels, config.data.mean, config.data.std = 1, (0.5,), (0.5,)
    with pytest.raises(
        ValueError, match=r"of 3 channels, but data\.channels=1: set --config\.data"
    ):
        inherit_architecture(config, None)


def test_a_part_of_a_file_is_what_is_read(monkeypatch):
    monkeypatch.setitem(vit.SIZES, "micro", vit.Size(16, 2, 2))
    found = [
        load_pretrained(str(PUBLISHED / "moco.pth.tar"), hints=WeightHints(2, "gelu", part))
        for part in ("", "base_encoder", "momentum_encoder")
    ]
    tokens = [one.params["class_token"] for one in found]
    np.testing.assert_array_equal(tokens[0], tokens[1])
    assert not np.array_equal(tokens[0], tokens[2])


def test_twelve_heads_at_the_width_of_s_are_a_size():
    module = vit.ViT((224, 224), 16, *vit.SIZES["S12"])
    assert (module.width, module.depth, module.num_heads) == (384, 12, 12)
    assert pretrained._describe(module, MAE_FILE)["size"] == "S12"


def test_of_a_run_nothing_is_to_be_told(tmp_path):
    with pytest.raises(ValueError, match="init_heads, init_activation and init_part are for some"):
        load_pretrained(str(tmp_path), hints=WeightHints(heads=12))


def test_the_teacher_in_a_file_is_a_part_of_it():
    with pytest.raises(ValueError, match="init_encoder='teacher' is for runs.*init_part=teacher"):
        load_pretrained(str(MAE_FILE), "teacher")


@pytest.mark.parametrize("defaults", [pretrain_defaults, finetune_defaults])
def test_without_weights_there_is_nothing_to_tell_of_them(defaults):
    config = defaults()
    config.init_heads, config.init_activation, config.init_part = 12, "gelu", "teacher"
    lines = [line for line in ignored_keys(config) if "init_from is empty" in line]
    assert len(lines) == 3


def test_a_folder_that_lacks_its_weights_is_no_run(tmp_path):
    folder = shutil.copytree(PUBLISHED / "transformers_ijepa", tmp_path / "ijepa")
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"ijepa/model\.safetensors is missing"):
        load_pretrained(str(folder))
    config = pretrain_defaults()
    with pytest.raises(FileNotFoundError, match=r"ijepa/model\.safetensors is missing"):
        load_teacher(str(folder), config)
    save_file(weights, folder / "encoder.safetensors")
    with pytest.raises(FileNotFoundError, match=r"There is encoder\.safetensors in it"):
        load_pretrained(str(folder))
    (folder / "config.json").unlink()
    message = r"neither a run nor weights: .*There is encoder\.safetensors in it: .*the file itself"
    with pytest.raises(FileNotFoundError, match=message):
        load_pretrained(str(folder))


def test_weights_in_parts_are_a_teacher():
    config = pretrain_defaults()
    teacher = load_teacher(str(PUBLISHED / "transformers_dinov2"), config)
    with np.load(PUBLISHED / "features.npz") as stored:
        images, expected = stored["images"], stored["transformers_dinov2"]
    pixels = images * np.float32(STD) + np.float32(MEAN)
    seen = (pixels - np.float32(config.data.mean)) / np.float32(config.data.std)
    module = teacher.module.clone(dtype=np.float32)
    found = jax.jit(lambda x: module.apply({"params": teacher.params}, x))(teacher.adapt(seen))
    np.testing.assert_allclose(found.tokens[0], expected, atol=5e-5)
