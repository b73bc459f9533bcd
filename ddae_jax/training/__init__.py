"""State, step, loop, optimizer, schedules, sharding, checkpoints and logging of a run."""
