"""Telemetry: log lines of runs, and spans and metrics for OpenTelemetry."""
