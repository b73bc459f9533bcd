"""Ahead-of-time compilation: memory, speed and traffic of a training step on absent devices.

Devices:

* ``topology``: TPU slices and GPUs that are not attached, as devices to compile for.
* ``chips``, ``gpu_targets``: peak numbers of accelerators; descriptions of GPUs for XLA.

The compiled step:

* ``compiled_step``: compiles a step, and collects its memory, operations and traffic.
* ``hlo``: parses the text of a compiled program.
* ``collectives``, ``gpu_cost``: collective operations, and the work of GPU kernels, from that text.

Conclusions:

* ``flops``: operations that the model itself needs, traced from its definition.
* ``roofline``: the shortest possible time of a step, and of the whole run.
* ``report``: all of it as text for people.
"""
