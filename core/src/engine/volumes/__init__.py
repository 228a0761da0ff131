"""Volumes: named data, the mounts a container asks for, and copying an image's files into a fresh volume."""

from engine.volumes.service import Volumes

__all__ = ["Volumes"]
