"""The core of the container engine: contracts, plugin host, state, services, API and CLI.

Import the submodule you need; this package imports nothing, so that the CLI, the launcher and the
monitors start fast. `specs/design/` explains the architecture, `hookspecs` is the index of the plugin API.
"""

__version__ = "0.1.0"
