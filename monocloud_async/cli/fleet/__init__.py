"""The `fleet` commands."""
