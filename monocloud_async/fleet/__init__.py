"""One run over a fleet: the ids by reference, the work in chunks, the engine Temporal."""
