"""Pytest fixtures of the engine; loaded by pytest in every environment the core is installed in."""
