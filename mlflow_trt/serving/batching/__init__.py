"""Concurrent requests become one call of an engine."""
