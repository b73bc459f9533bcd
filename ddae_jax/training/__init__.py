"""Training of any task: the loop, the state that it updates, and what keeps a run safe.

The program of a run:

* ``program``, ``state``, ``step``: what is trained, the train state, and the jitted step.
* ``loop``, ``reading``: the loop over steps, and the batches that it reads ahead.
* ``optimizer``, ``schedules``, ``compiler_options``: optimizers, schedules, compiler settings.

Devices and processes:

* ``sharding``: the device mesh, and the layout of state and batches on it.
* ``multihost``: decisions that all processes of a run take together.
* ``peers``: notices that another process is gone, and ends this one with a message.
* ``signals``: ends a run in good order when it is asked to stop.

Files of a run:

* ``workdir``: the run's folder, and the lock on it.
* ``checkpoint``, ``checkpoint_contents``, ``digests``: saving and restoring; what is stored in a
  checkpoint and whether it is intact; digests of arrays.
* ``metrics``, ``display``: records of metrics in files; log lines and progress bar on the terminal.

This room knows neither methods nor configs: both are passed in as arguments.
"""
