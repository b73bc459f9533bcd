"""Jobs: the way from a command line to the end of a run, the same for all of them."""
