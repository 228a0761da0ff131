"""Images: what there is (`service`, `records`), how it looks to clients (`views`), and how it comes, goes and leaves.

`transfers` pulls and pushes, `archives` loads, saves and imports (`inlet` receives the stream), `changes` applies
Dockerfile instructions to a configuration, `removal` decides what an ``rmi`` takes away.
"""

from engine.images.service import Images, Progress, Pushable

__all__ = ["Images", "Progress", "Pushable"]
