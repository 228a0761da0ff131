"""A client of registries: the OCI distribution protocol over urllib3, synchronous, for use on worker threads.

    auth        credentials, challenges, tokens
    endpoints   which URLs serve a reference: mirrors, plain HTTP, client certificates
    transport   one HTTP request: redirects, retries, dockerd's words for what went wrong
    manifests   manifests and indexes as values; the choice of a platform
    client      `Registries` (one for the daemon) and `Repository` (one for each pull or push)

urllib3 and ssl are imported at the first request: a daemon that never pulls does not pay for them.
"""
