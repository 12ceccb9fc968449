"""Reports on a run, made from its journal alone."""
