"""How a command ends, for whoever started it."""

ALL_ENABLED, SOME_FAILED, USAGE, STOPPED, INTERRUPTED = 0, 1, 2, 3, 130
