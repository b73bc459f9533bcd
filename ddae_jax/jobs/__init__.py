"""Jobs: what the training commands share, from the command line to the end of a run."""
