import dataclasses
import logging
import re
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddae_jax.training.checkpoint import CheckpointError, Checkpoints
from ddae_jax.training.health import Health, NonFiniteLoss
from ddae_jax.training.hooks import Hook
from ddae_jax.training.loop import catch_up, fit
from ddae_jax.training.program import TrainState
from ddae_jax.training.schedules import Schedule
from ddae_jax.training.sharding import abstract, make_mesh, put_batch, state_sharding
from ddae_jax.training.signals import StopRequest

BATCH = 8
MESH = make_mesh(1, 1, jax.devices()[:1])


def fresh_state(step=0):
    return jax.device_put(
        TrainState(jnp.int32(step), {"sum": jnp.float32(0)}, {}, ()), MESH.devices.item()
    )


@jax.jit
def add_up(state, batch):
    """A step whose loss is the mean of the images, and whose parameter is the sum of losses."""
    loss = batch["image"].mean()
    total = state.params["sum"] + loss
    metrics = {
        "loss": loss,
        "gradient_norm": jnp.sqrt(loss),
        "parameter_norm": jnp.abs(total),
        "learning_rate": 0.5 * loss,
    }
    return TrainState(state.step + 1, {"sum": total}, {}, ()), metrics


class Images:
    """Batches that hold their own number, counted from 1, or what is given for that number."""

    corrupt_count = 3
    corrupt_causes = {"truncated": 3}  # noqa: RUF012 - nobody changes it

    def __init__(self, given=None, before=lambda number: None):
        self.number = 0
        self._given = given or {}
        self._before = before

    def next_unless(self, is_over):
        self.number += 1
        self._before(self.number)
        return {"image": np.full(BATCH, self._given.get(self.number, self.number), np.float32)}

    def get_state(self, step):
        return {"number": self.number}

    def synchronize(self):
        pass


class Recorder:
    """Checkpoints in memory: what was saved, when."""

    def __init__(self, steps=()):
        self.saved = dict.fromkeys(steps)
        self.kept_records = {}
        self.is_waited_for = False

    def latest_step(self):
        return max(self.saved, default=None)

    def save(self, state, step, data_state):
        assert int(state.step) == step
        kept = dict(data_state)
        assert kept.pop("schedule").keys() == {"steps_per_epoch", "total_steps"}
        self.kept_records[step] = kept.pop("record", None)
        self.kept_skipped = kept.pop("skipped", None)
        self.saved[step] = (float(state.params["sum"]), kept)

    def wait(self):
        self.is_waited_for = True


class Every(Hook):
    """What is done every so many steps."""

    def __init__(self, steps, action, at_end=True, metric=None):
        self.every_steps, self.on_steps = steps, action
        self.at_end, self.metric = at_end, metric


class Records(Hook):
    """Keeps the records, of which each step has one."""

    def __init__(self):
        self.by_step = {}

    def on_record(self, number, metrics):
        assert number not in self.by_step
        self.by_step[number] = dict(metrics)


@dataclasses.dataclass
class Run:
    """What came of a run."""

    checkpoints: Recorder
    records: dict
    state: TrainState | None = None
    error: Exception | None = None


def run(
    total_steps=10,
    *,
    log=1,
    save=100,
    images=None,
    checkpoints=None,
    state=None,
    actions=(),
    step=add_up,
    stop=None,
    **options,
):
    checkpoints = Recorder() if checkpoints is None else checkpoints
    records = Records()
    came = Run(checkpoints, records.by_step)
    try:
        came.state = fit(
            fresh_state() if state is None else state,
            step,
            Images() if images is None else images,
            lambda batch: put_batch(batch, MESH),
            checkpoints,
            Schedule(5, total_steps, BATCH, log, save),
            [records, *actions],
            StopRequest() if stop is None else stop,
            Health(checkpoints, **options),
        )
    except (NonFiniteLoss, CheckpointError) as error:
        came.error = error
    return came


# ---- records and checkpoints


def test_every_step_is_taken_once_with_its_own_batch():
    came = run(10)
    assert [came.records[step]["loss"] for step in range(1, 11)] == list(range(1, 11))
    assert (int(came.state.step), float(came.state.params["sum"])) == (10, 55.0)


@pytest.mark.parametrize(
    ("log", "steps"), [(1, [1, 2, 3, 4, 5, 6, 7]), (3, [3, 6, 7]), (7, [7]), (50, [7])]
)
def test_records_come_at_their_interval_and_at_the_end(log, steps):
    assert list(run(7, log=log).records) == steps


@pytest.mark.parametrize(("save", "steps"), [(1, [1, 2, 3, 4, 5]), (2, [2, 4, 5]), (9, [5])])
def test_checkpoints_come_at_their_interval_and_at_the_end_with_the_data_position(save, steps):
    came = run(5, save=save)
    expected = {step: (step * (step + 1) / 2, {"number": step}) for step in steps}
    assert came.checkpoints.saved == expected
    assert came.checkpoints.is_waited_for


def test_a_record_holds_metrics_progress_and_counts():
    record = run(10, log=4).records[4]
    assert record["loss"] == 4
    assert record["gradient_norm"] == 2
    assert record["learning_rate"] == 2
    assert record["epoch"] == 4 / 5
    assert record["progress"] == 4 / 10
    assert record["corrupt_images"] == 3
    assert all(type(value) is float for value in record.values())


def test_a_run_continues_from_its_step():
    images = Images()
    images.number = 6
    came = run(9, save=4, state=fresh_state(6), images=images, checkpoints=Recorder([6]))
    assert list(came.records) == [7, 8, 9]
    assert list(came.checkpoints.saved) == [6, 8, 9]


def test_a_run_that_is_complete_does_nothing():
    checkpoints = Recorder([5])
    came = run(5, state=fresh_state(5), checkpoints=checkpoints)
    assert came.records == {}
    assert checkpoints.saved == {5: None}


# ---- actions


def test_actions_happen_at_their_interval_and_at_the_end_and_join_the_record():
    seen = []

    def look(state, step):
        seen.append((int(state.step), float(state.params["sum"]), step))
        return {"knn/trained": step / 100}

    came = run(10, log=100, actions=[Every(4, look), Every(5, lambda state, step: {"five": 1.0})])
    assert seen == [(step, step * (step + 1) / 2, step) for step in (4, 8, 10)]
    assert list(came.records) == [4, 5, 8, 10]
    assert came.records[8]["knn/trained"] == 0.08
    assert "five" not in came.records[8]
    assert {"knn/trained", "five", "loss", "images_per_s"} <= came.records[10].keys()


def test_an_action_may_leave_the_last_step_out():
    seen = []
    action = Every(4, lambda state, step: seen.append(step) or {}, at_end=False)
    run(8, log=100, actions=[action])
    assert seen == [4]


# ---- a loss that is no longer a number


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("log", [1, 4, 100])
def test_a_non_finite_loss_stops_the_run_naming_its_step(bad, log):
    came = run(12, log=log, save=5, images=Images({7: bad}))
    assert isinstance(came.error, NonFiniteLoss)
    message = str(came.error)
    assert message.startswith("step 7: loss=")
    assert f"loss={bad:.4g}, gradient_norm=" in message
    assert "the last good checkpoint is that of step 5;" in message
    # The metrics of the latest step that was taken.
    latest = re.search(r"Metrics of step \d+: (.*)", message)[1]
    assert {pair.split("=")[0] for pair in latest.split(", ")} == {
        "loss",
        "gradient_norm",
        "parameter_norm",
        "learning_rate",
    }
    assert list(came.checkpoints.saved) == [5]
    assert came.checkpoints.is_waited_for
    assert max(came.records, default=0) < 7


@pytest.mark.parametrize("save", [1, 3, 100])
def test_nothing_after_a_non_finite_loss_is_saved_even_if_later_losses_are_finite(save):
    came = run(9, log=100, save=save, images=Images({4: np.nan}))
    assert str(came.error).startswith("step 4: ")
    assert all(step < 4 for step in came.checkpoints.saved)
    where = "there is no checkpoint yet" if save == 100 else "checkpoint is that of step 3;"
    assert where in str(came.error)


def test_a_non_finite_gradient_norm_stops_the_run_too():
    # sqrt(-4): the loss itself is a number.
    came = run(12, log=100, save=5, images=Images({8: -4.0}))
    assert str(came.error).startswith(
        "step 8: loss=-4, gradient_norm=nan, parameter_norm=24. Nothing "
    )
    assert list(came.checkpoints.saved) == [5]


def test_parameters_that_are_not_finite_stop_the_run_though_loss_and_gradient_are():
    @jax.jit
    def overflow(state, batch):
        state, metrics = add_up(state, batch)
        grown = metrics["parameter_norm"] * jnp.where(state.step == 4, jnp.inf, 1)
        return state, metrics | {"parameter_norm": grown}

    came = run(12, log=100, save=3, step=overflow)
    assert str(came.error).startswith("step 4: loss=4, gradient_norm=2, parameter_norm=inf. ")
    assert list(came.checkpoints.saved) == [3]


def test_a_checkpoint_that_fails_meanwhile_does_not_hide_a_non_finite_loss():
    class Full(Recorder):
        def wait(self):
            raise CheckpointError("a checkpoint could not be saved: no space")

    came = run(12, log=100, save=3, images=Images({5: np.nan}), checkpoints=Full())
    assert isinstance(came.error, NonFiniteLoss)
    assert "a checkpoint could not be saved: no space" in str(came.error)


def test_a_non_finite_last_step_is_not_saved():
    came = run(5, log=100, images=Images({5: np.nan}))
    assert str(came.error).startswith("step 5: ")
    assert came.checkpoints.saved == {}


@jax.jit
def add_up_but_skip(state, batch):
    """:func:`add_up`, which leaves its state as it was where the loss is no number."""
    after, metrics = add_up(state, batch)
    is_finite = jnp.isfinite(metrics["loss"])
    total = jnp.where(is_finite, after.params["sum"], state.params["sum"])
    metrics |= {"parameter_norm": jnp.abs(total), "skipped": 1 - is_finite}
    return TrainState(after.step, {"sum": total}, {}, ()), metrics


def test_so_many_steps_in_a_row_may_be_left_out_and_are_counted(caplog):
    wrong = Images({3: np.nan, 4: np.nan, 6: np.inf})
    came = run(8, log=8, images=wrong, step=add_up_but_skip, max_skipped=2)
    assert came.error is None
    assert float(came.state.params["sum"]) == 1 + 2 + 5 + 7 + 8
    assert came.records[8]["skipped_steps"] == 3
    assert "skipped" not in came.records[8]
    assert "step 3: loss=nan" in caplog.text
    assert "left out, as number 2 in a row, of at most 2 (optimizer.skip_nonfinite)" in caplog.text


def test_more_in_a_row_stop_the_run():
    wrong = Images(dict.fromkeys((3, 4, 5), np.nan))
    came = run(8, log=8, images=wrong, step=add_up_but_skip, max_skipped=2)
    assert isinstance(came.error, NonFiniteLoss)
    assert (came.error.step, came.error.exit_status) == (5, 1)


def test_steps_in_a_row_are_counted_across_a_restart():
    """The checkpoint of step 4 lies amid steps that go wrong; started again, it ends as before."""
    wrong = Images(dict.fromkeys(range(3, 20), np.nan))
    came = run(12, log=12, save=4, images=wrong, step=add_up_but_skip, max_skipped=2)
    assert list(came.checkpoints.saved) == [4]
    assert came.checkpoints.kept_skipped == (2, 2)
    again = Images(dict.fromkeys(range(1, 20), np.nan))
    options = {"step": add_up_but_skip, "max_skipped": 2, "skipped": (2, 2)}
    again = run(12, log=12, save=4, images=again, state=fresh_state(4), **options)
    assert isinstance(again.error, NonFiniteLoss)
    assert again.error.step == came.error.step == 5
    assert "It is number 3 in a row, and optimizer.skip_nonfinite leaves out 2" in str(again.error)
    assert "optimizer.skip_nonfinite=5" not in str(again.error)
    options["skipped"] = (7, 0)
    came = run(5, log=5, images=Images(), state=fresh_state(4), **options)
    assert came.records[5]["skipped_steps"] == 7


def test_parameters_that_are_no_numbers_are_not_skipped():
    came = run(8, log=8, images=Images({3: np.nan}), max_skipped=2)
    assert came.error.step == 3


def test_after_a_non_finite_loss_the_last_good_checkpoint_restores(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        came = run(8, log=100, save=3, images=Images({5: np.inf}), checkpoints=checkpoints)
        assert isinstance(came.error, NonFiniteLoss)
        assert checkpoints.steps() == [3]
        wanted = abstract(fresh_state(), state_sharding(MESH, fresh_state()))
        state, data_state = checkpoints.restore(wanted)
    assert (int(state.step), float(state.params["sum"])) == (3, 6.0)
    assert data_state == {"number": 3, "schedule": {"steps_per_epoch": 5, "total_steps": 8}}


# ---- being asked to stop


def stop_at(number):
    def before(current):
        if current == number:
            signal.raise_signal(signal.SIGTERM)

    return Images(before=before)


@pytest.mark.parametrize("number", [1, 3, 4])
def test_a_stop_ends_after_the_running_step_and_saves_exactly_there(number, caplog):
    with StopRequest() as stop, caplog.at_level(logging.ERROR):
        came = run(10, log=100, save=4, images=stop_at(number), stop=stop)
    assert int(came.state.step) == number
    assert came.checkpoints.saved[number] == (number * (number + 1) / 2, {"number": number})
    assert list(came.checkpoints.saved) == [number]
    assert list(came.records) == [number]


class Hanging(Images):
    """Batches of which one does not come, and a signal meanwhile."""

    def next_unless(self, is_over):
        if self.number == 5:
            assert not is_over()
            signal.raise_signal(signal.SIGTERM)
            assert is_over()
            return None
        return super().next_unless(is_over)


@pytest.mark.parametrize(("log", "records"), [(1, [1, 2, 3, 4, 5]), (4, [4, 5]), (100, [5])])
def test_a_stop_ends_the_wait_for_a_batch_and_the_last_finished_step_is_saved_and_recorded(
    log, records
):
    with StopRequest() as stop:
        came = run(10, log=log, save=4, images=Hanging(), stop=stop)
    assert int(came.state.step) == 5
    assert came.checkpoints.saved[5] == (1 + 2 + 3 + 4 + 5, {"number": 5})
    assert list(came.records) == records
    assert came.records[5]["loss"] == 5


def test_where_no_batch_can_be_read_the_last_finished_step_is_saved_before_that_is_told(caplog):
    def before(number):
        if number == 6:
            raise OSError("gone")

    checkpoints = Recorder()
    with pytest.raises(OSError, match="gone"):
        run(10, log=100, save=4, images=Images(before=before), checkpoints=checkpoints)
    assert {step: total for step, (total, _) in checkpoints.saved.items()} == {4: 10, 5: 15}
    assert checkpoints.is_waited_for
    assert "no batch can be read after step 5, which is saved" in caplog.text


def test_a_stop_during_an_action_ends_at_that_step():
    def action(state, step):
        signal.raise_signal(signal.SIGTERM)
        return {}

    with StopRequest() as stop:
        came = run(10, log=100, save=100, actions=[Every(6, action)], stop=stop)
    assert list(came.checkpoints.saved) == [6]


def test_a_stop_cuts_an_action_short_and_leaves_the_others_out():
    acted = []

    def long(state, step):
        acted.append("long")
        signal.raise_signal(signal.SIGTERM)
        acted.append("to the end")
        return {}

    def other(state, step):
        acted.append("other")
        return {}

    with StopRequest() as stop:
        came = run(10, save=100, actions=[Every(6, long), Every(6, other)], stop=stop)
    assert acted == ["long"]
    assert list(came.checkpoints.saved) == [6]
    assert list(came.records) == [1, 2, 3, 4, 5, 6]


def test_after_a_stop_no_action_is_begun():
    def action(state, step):
        raise AssertionError

    with StopRequest() as stop:
        came = run(10, images=stop_at(4), actions=[Every(4, action)], stop=stop)
    assert list(came.checkpoints.saved) == [4]


def test_what_is_due_is_saved_before_actions_take_their_time():
    saved = []
    recorder = Recorder()

    def action(state, step):
        saved.append(list(recorder.saved))
        return {}

    run(6, save=3, actions=[Every(3, action)], checkpoints=recorder)
    assert saved == [[3], [3, 6]]


def test_an_action_that_fails_is_logged_and_training_goes_on(caplog):
    def action(state, step):
        raise OSError("no space left for a figure")

    came = run(4, actions=[Every(2, action), Every(2, lambda state, step: {"other": 1.0})])
    assert list(came.checkpoints.saved) == [4]
    assert came.records[2]["other"] == 1.0
    assert "no space left for a figure" in caplog.text
    assert "step 2" in caplog.text


def test_a_stop_before_the_first_step_takes_none():
    images = Images()
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGTERM)
        came = run(10, images=images, state=fresh_state(4), checkpoints=Recorder([4]), stop=stop)
    assert images.number == 0
    assert came.checkpoints.saved == {4: None}


def test_a_stopped_run_that_is_continued_ends_as_one_that_never_stopped():
    whole = run(10)
    with StopRequest() as stop:
        first = run(10, images=stop_at(4), stop=stop)
    images = Images()
    images.number = first.checkpoints.saved[4][1]["number"]
    second = run(10, state=first.state, images=images, checkpoints=first.checkpoints)
    assert second.state == whole.state
    assert second.checkpoints.saved[10] == whole.checkpoints.saved[10]
    assert second.checkpoints.kept_records[10]["loss"] == 10.0
    assert [*first.records, *second.records] == list(whole.records)


# ---- what a kill between a checkpoint and its record leaves out


def made_up(step, stored, known, actions=(), stop=None):
    """What is recorded when a run of ten steps, five an epoch, goes on from a step."""
    records, schedule = Records(), Schedule(5, 10, BATCH, 1, 100)
    hooks = [records, *actions]
    catch_up(fresh_state(step), schedule, hooks, stored, known, stop or StopRequest())
    return records.by_step


def score(state, step):
    return {"score": 100.0 + int(state.step)}


def test_a_checkpoint_keeps_the_record_of_its_step():
    came = run(6, log=2, save=3)
    assert came.checkpoints.kept_records[3] is None  # no step to be recorded
    assert came.checkpoints.kept_records[6] == came.records[6]


def test_a_record_that_a_kill_left_out_is_made_up_for_with_what_was_due():
    stored = {"loss": 4.0, "epoch": 0.8, "progress": 0.4}
    actions = [Every(4, score, metric="score"), Every(3, score, metric="other")]
    expected = {4: stored | {"score": 104.0}}
    assert made_up(4, stored, (), actions) == expected
    assert made_up(4, stored, ("epoch", "loss", "score"), actions) == {}
    # A stop left the action out, after the record was written.
    place = {"epoch": 0.8, "progress": 0.4}
    assert made_up(4, stored, ("loss",), actions) == {4: place | {"score": 104.0}}
    assert made_up(4, {}, (), ()) == {}


def test_what_is_due_at_the_end_is_made_up_for_at_the_end():
    actions = [Every(4, score, metric="score"), Every(5, score, at_end=False, metric="other")]
    assert made_up(10, {}, (), actions)[10]["score"] == 110.0
    assert made_up(10, {}, ("score",), actions) == {}
    assert made_up(5, {}, (), actions[:1]) == {}


def test_what_measures_nothing_is_not_done_again():
    assert made_up(4, {}, (), [Every(4, score)]) == {}


# ---- what is measured


def timed_run(*args, **kwargs):
    began = time.perf_counter()
    came = run(*args, **kwargs)
    return came, time.perf_counter() - began


def test_waiting_for_data_is_measured():
    slow = Images(before=lambda number: time.sleep(0.03))
    came, elapsed = timed_run(10, log=10, images=slow)
    record = came.records[10]
    assert record["data_wait_share"] >= 10 * 0.03 / elapsed
    assert record["data_wait_share"] <= 1
    assert 10 * BATCH / elapsed <= record["images_per_s"] <= BATCH / 0.03


def test_computing_is_not_waiting():
    def slow_step(state, images):
        time.sleep(0.03)
        return add_up(state, images)

    came, elapsed = timed_run(10, log=10, step=slow_step)
    record = came.records[10]
    assert record["data_wait_share"] <= 1 - 10 * 0.03 / elapsed
    assert 10 * BATCH / elapsed <= record["images_per_s"] <= BATCH / 0.03


def test_actions_and_checkpoints_do_not_count_in_the_rate():
    def rest(state, step):
        time.sleep(0.25)
        return {}

    class SlowRecorder(Recorder):
        def save(self, *args):
            time.sleep(0.25)
            super().save(*args)

    checkpoints = SlowRecorder()
    slept = 4 * 0.25  # an action and a checkpoint, at steps 2 and 4
    came, elapsed = timed_run(
        4, log=4, save=2, actions=[Every(2, rest)], checkpoints=checkpoints,
        images=Images(before=lambda number: time.sleep(0.01)),
    )  # fmt: skip
    # Both halves lie within what remains of the run's time without the sleeping.
    for record in came.records.values():
        assert record["images_per_s"] >= 2 * BATCH / (elapsed - slept)
    assert elapsed > slept


def test_each_record_measures_the_time_since_the_one_before():
    slow_until = Images(before=lambda number: time.sleep(0.05 if number <= 4 else 0))
    came = run(8, log=4, images=slow_until)
    assert came.records[4]["images_per_s"] <= BATCH / 0.05
    assert came.records[8]["images_per_s"] > 2 * came.records[4]["images_per_s"]
    assert came.records[8]["data_wait_share"] < came.records[4]["data_wait_share"]


# ---- transfers


def test_hidden_transfers_are_refused_in_the_step():
    def leaky(state, images):
        return add_up(state, {"image": np.ones(BATCH, np.float32)})  # the host's, not put

    with pytest.raises(Exception, match="[Dd]isallowed"):
        run(2, step=leaky)
