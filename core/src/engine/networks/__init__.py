"""Networks: CNM's three nouns - network, endpoint, sandbox - for the containers of this host.

`service` is what containers and the API call; `records` keeps networks and their drivers in step; `ipam` hands out
addresses; `attachments` gives a container its sandbox and endpoints; `ports` plans what is published; `files` writes
hosts and resolv.conf; `sandbox` makes network namespaces.
"""

from engine.networks.records import NetworkCreate
from engine.networks.service import Attachment, Networks

__all__ = ["Attachment", "NetworkCreate", "Networks"]
