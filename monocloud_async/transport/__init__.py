"""Sends one request and returns its response: through `ClientSession`, or faster without it."""
