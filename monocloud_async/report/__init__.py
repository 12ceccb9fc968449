"""What happened in a run, for people who were not there: read from its journal alone."""
