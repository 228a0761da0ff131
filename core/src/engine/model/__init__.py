"""Frozen values shared by services, API and plugins, in the shapes of the Docker Engine API.

One module per noun. Field names are the API's in snake case; `msgspec` renders them in the API's own spelling.
"""
