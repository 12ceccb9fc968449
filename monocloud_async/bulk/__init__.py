"""A run over many users: where the ids come from, their attempts, and where outcomes go."""
