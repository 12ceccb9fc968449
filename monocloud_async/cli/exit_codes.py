"""The exit codes of the commands."""

ALL_DONE, SOME_FAILED, USAGE, STOPPED, FAULT, INTERRUPTED = 0, 1, 2, 3, 70, 130
