"""From a container's record to the OCI runtime spec: pure data, built from facts that were looked up before.

`spec` puts it together; `resources` translates limits, `devices` nodes and rules, `users` the user in the image's
files; `host` reads once what of this machine matters. Security is not here: plugins edit the result
(`engine_oci_spec`).
"""
