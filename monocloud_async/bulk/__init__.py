"""Runs one operation for many users: the source of ids, the attempts, and the results."""
