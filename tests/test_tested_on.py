"""What jobs say of the split that they test on: that it is trained on, or cannot be read."""

import json

import numpy as np
import pytest

import annotated
from ddae_jax import evaluate
from ddae_jax.builders.evaluation import build_labelled_images
from ddae_jax.builders.segmentation import build_pairs, count_pixels
from ddae_jax.config import finetune_defaults, pretrain_defaults, segment_defaults, to_plain
from ddae_jax.data.readable import NothingReadable
from ddae_jax.evaluation.segmentation import mean_iou
from ddae_jax.finetune import FinetuneJob
from ddae_jax.hooks.scores import ScoresHook, ScoresReport
from ddae_jax.jobs import exits
from ddae_jax.segment import SegmentJob
from ddae_jax.training.sharding import make_mesh
from ddae_jax.training.workdir import Workdir
from tiny import write_image

DEFAULTS = {
    "pretrain": pretrain_defaults,
    "finetune": finetune_defaults,
    "segment": segment_defaults,
}


def config_of(job, data_dir):
    """Of a ViT-Ti from scratch on images of 16 x 16 pixels."""
    config = DEFAULTS[job]()
    config.batch_size = 2
    config.model.size = "Ti"
    config.model.image_size = (16, 16)
    config.model.patch_size = 4
    config.data.source = "folder"
    config.data.data_dir = str(data_dir)
    if job == "segment":
        config.data.num_classes = 2
    return config


@pytest.fixture
def photos(tmp_path):
    """Two classes in two splits, of two images each."""
    for split in ("train", "validation"):
        for name in ("cat", "dog"):
            folder = tmp_path / "photos" / split / name
            folder.mkdir(parents=True)
            for number in range(2):
                write_image(folder / f"{number}.png")
    return tmp_path / "photos"


@pytest.fixture
def scenes(tmp_path):
    """Two annotated images in two splits."""
    for split in ("training", "validation"):
        for number in range(2):
            labels = np.eye(16, dtype=int)
            image = np.repeat(labels[..., None], 3, axis=-1)
            annotated.write_pair(tmp_path / "scenes", str(number), image, labels, split)
    return tmp_path / "scenes"


def spoil(folder):
    for path in folder.rglob("*.png"):
        path.write_bytes(b"junk")


def open_sources(job_class, config, tmp_path):
    job_class(config, Workdir(tmp_path / "run")).sources()


JUNK = (
    r"the 'validation' split: none of {} examples can be decoded \({} no image\): .*/0\.png cannot"
)


class TestUnreadable:
    def test_images_are_named_before_a_network_is_trained_on_others(self, photos, tmp_path):
        spoil(photos / "validation")
        with pytest.raises(NothingReadable, match=JUNK.format(4, 4)):
            open_sources(FinetuneJob, config_of("finetune", photos), tmp_path)

    def test_a_readable_image_is_enough(self, photos, tmp_path):
        spoil(photos / "validation" / "cat")
        open_sources(FinetuneJob, config_of("finetune", photos), tmp_path)

    def test_pairs_are_named_before_a_network_is_trained_on_others(self, scenes, tmp_path):
        spoil(scenes / "images" / "validation")
        with pytest.raises(NothingReadable, match=JUNK.format(2, 2)):
            open_sources(SegmentJob, config_of("segment", scenes), tmp_path)

    @pytest.mark.parametrize("split", ["train", "validation"])
    def test_images_for_k_nn_are_named(self, split, photos):
        spoil(photos / split)
        with pytest.raises(NothingReadable, match=f"the '{split}' split: none of 4 examples"):
            build_labelled_images(config_of("pretrain", photos), make_mesh())

    def test_images_are_named_where_a_run_is_evaluated_again(self, photos, tmp_path, capsys):
        spoil(photos / "validation")
        (tmp_path / "run").mkdir()
        plain = to_plain(config_of("finetune", photos))
        (tmp_path / "run" / "config.json").write_text(json.dumps(plain))
        with pytest.raises(SystemExit) as ended:
            evaluate.main([f"--workdir={tmp_path / 'run'}", "--task=classification"])
        assert ended.value.code == 2
        assert "the 'validation' split: none of 4 examples" in capsys.readouterr().err

    def test_pairs_are_counted_where_they_are_scored(self, scenes):
        config = config_of("segment", scenes)
        source = build_pairs(config, "validation")
        spoil(scenes / "images" / "validation")

        def segmenter(variables):
            return lambda image: np.zeros(image.shape[:2], int)

        with pytest.raises(NothingReadable, match="none of 2 annotated images can be decoded"):
            count_pixels(config, segmenter, None, source)
        with pytest.raises(ValueError, match="counts no pixel"):
            mean_iou(np.zeros((2, 2), np.int64))


class Gone(ScoresHook[None]):
    """Scores of a test split that went away while the run trained."""

    def score(self, state):
        raise NothingReadable("none of 3 labelled images can be decoded; the log names them")

    metrics = format = to_json = None


class Report(ScoresReport[None]):
    title = summary = results = draw_scores = None


class TestGoneOnTheWay:
    def test_scores_are_left_out_without_a_traceback(self, caplog):
        assert Gone(4).on_steps(None, 4) == {}
        (record,) = caplog.records
        assert (record.levelname, record.exc_info) == ("ERROR", None)
        assert "step 4: the test split has no scores: none of 3 labelled" in record.getMessage()

    def test_the_end_says_what_is_saved_and_what_to_do(self, photos, tmp_path, capsys):
        config = config_of("finetune", photos)
        report = Report(config, Workdir(tmp_path / "run"), 10, Gone(4))
        with pytest.raises(exits.CommandEnded) as ended, exits.explain_run_ends():
            report.on_end(None, 10)
        assert ended.value.code == 1
        told = capsys.readouterr().err
        assert "step 10 is saved, but the test split has no scores: none of 3 labelled" in told
        assert "Once it can be read, the same command scores it and writes the report" in told


class TestTrainedOn:
    SHARED = "of data.test_split={0!r} are among those of data.train_split={0!r}"

    def shared(self, config, split, caplog):
        assert self.SHARED.format(split) not in caplog.text
        config.data.test_split = split
        return self.SHARED.format(split)

    @pytest.mark.parametrize(
        ("job", "data", "split"),
        [(FinetuneJob, "photos", "train"), (SegmentJob, "scenes", "training")],
    )
    def test_training_warns(self, request, tmp_path, caplog, job, data, split):
        config = config_of(job.name, request.getfixturevalue(data))
        open_sources(job, config, tmp_path)
        message = self.shared(config, split, caplog)
        open_sources(job, config, tmp_path)
        assert message in caplog.text

    def test_k_nn_warns(self, photos, caplog):
        config = config_of("pretrain", photos)
        build_labelled_images(config, make_mesh())
        message = self.shared(config, "train", caplog)
        build_labelled_images(config, make_mesh())
        assert message in caplog.text

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("job", "task", "split"),
        [("finetune", "classification", "train"), ("segment", "segmentation", "training")],
    )
    def test_evaluation_warns(self, job, task, split, photos, scenes, tmp_path, capsys):
        config = config_of(job, photos if job == "finetune" else scenes)
        if job == "segment":
            config.head.kind = "linear"
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "config.json").write_text(json.dumps(to_plain(config)))
        with pytest.raises(SystemExit):  # there are no weights
            evaluate.main([f"--workdir={tmp_path / 'run'}", f"--task={task}", f"--split={split}"])
        assert self.SHARED.format(split) in capsys.readouterr().err
