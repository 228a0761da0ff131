"""The Docker Engine API over HTTP: a small server, a router, and one module of routes for each resource.

Nothing here holds state or rules: handlers parse a request, call a service, and render the answer.
"""
