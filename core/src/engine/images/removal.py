"""What ``docker rmi`` does: dockerd's rules about names, containers and force, worked out on the records.

A removal is planned first - changes for the store, the report and the events - and carried out by the images service.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from engine.errors import Conflict
from engine.images.records import IMAGE, REFERENCE, ImageRecord, ImageTable
from engine.model.container import Container
from engine.names import Reference, parse_reference, short_id
from engine.store import Change, Delete

__all__ = ["Removal"]

_RUNNING = frozenset({"running", "paused", "restarting", "removing"})

Users = Callable[[str], Sequence[Container]]


class Removal:
    """The plan of one removal. ``events`` are (image id, action, its record), in order."""

    def __init__(self, table: ImageTable, users: Users) -> None:
        self.changes: list[Change] = []
        self.report: list[dict[str, str]] = []
        self.events: list[tuple[str, str, ImageRecord]] = []
        self.deleted = False
        self._table = table
        self._users = users
        self._gone: set[str] = set()

    def plan(self, text: str, *, force: bool, prune: bool) -> None:
        """Work out what removing ``text`` means. Raises `Conflict` in dockerd's words, `NotFound`."""
        record = self._table.find(text)
        companions = self._table.companions(record.id)
        self._plan(record, text, force=force, prune=prune)
        for other in companions:  # other platforms of what has no name any more
            if other.id not in self._gone and not self._references(other):
                try:
                    self._delete(other, force=False, prune=prune, quiet=True)
                except _InUse:
                    continue

    def _plan(self, record: ImageRecord, text: str, *, force: bool, prune: bool) -> None:
        references = self._references(record)
        by_name = not self._table.is_id(text, record.id)
        if by_name:
            user = next(iter(self._users(record.id)), None)
            if not force and user is not None and _is_single(references):
                raise Conflict(
                    f'conflict: unable to remove repository reference "{text}" (must force) - container '
                    f"{short_id(user.id)} is using its referenced image {short_id(record.id)}"
                )
            wanted = parse_reference(text)
            removed = wanted.with_digest(wanted.digest) if wanted.digest else wanted.with_default_tag()
            self._untag(record, removed, event=True)
            if not removed.digest:
                self._untag_leftovers(record, removed)
            if self._references(record):
                return
        elif _is_single(references):
            # the name itself is no reason to refuse here: it goes with the image
            self._check(record, hard=True, stopped=not force, names=False)
            for reference in references:
                self._untag(record, reference, event=True)
        self._delete(record, force=force, prune=prune, quiet=by_name)

    def _references(self, record: ImageRecord) -> list[Reference]:
        return [one for one in self._table.references_of(record.id) if str(one) not in self._gone]

    def _untag(self, record: ImageRecord, reference: Reference, *, event: bool) -> None:
        self._gone.add(str(reference))
        self.changes.append(Delete(REFERENCE, str(reference)))
        self.report.append({"Untagged": reference.familiar})
        if event:
            self.events.append((record.id, "untag", record))

    def _untag_leftovers(self, record: ImageRecord, removed: Reference) -> None:
        """With the last tag of a repository its digest references go."""
        same = [one for one in self._references(record) if one.name == removed.name]
        if all(one.digest for one in same):
            for one in same:
                self._untag(record, one, event=False)

    def _delete(self, record: ImageRecord, *, force: bool, prune: bool, quiet: bool) -> None:
        try:
            self._check(record, hard=True, stopped=not force, names=not force)
        except _InUse as conflict:
            if quiet and (self._references(record) or conflict.used):
                return
            raise
        for reference in self._references(record):
            self._untag(record, reference, event=False)
        self.deleted = True
        self._gone.add(record.id)
        self.changes.append(Delete(IMAGE, record.id))
        self.events.append((record.id, "delete", record))
        self.report.append({"Deleted": record.id})
        parent = self._table.images.get(record.parent)
        if prune and parent is not None and not self._references(parent):
            try:
                self._delete(parent, force=False, prune=True, quiet=True)
            except _InUse:
                return

    def _check(self, record: ImageRecord, *, hard: bool, stopped: bool, names: bool) -> None:
        if hard:
            if any(child not in self._gone for child in self._table.children(record.id)):
                raise _InUse(record, "cannot be forced", "image has dependent child images")
            for user in self._users(record.id):
                if user.state.status in _RUNNING:
                    reason = f"image is being used by running container {short_id(user.id)}"
                    raise _InUse(record, "cannot be forced", reason, used=True)
        if names and self._references(record):
            raise _InUse(record, "must be forced", "image is referenced in multiple repositories")
        if stopped:
            for user in self._users(record.id):
                reason = f"image is being used by stopped container {short_id(user.id)}"
                raise _InUse(record, "must be forced", reason, used=True)


class _InUse(Conflict):
    def __init__(self, record: ImageRecord, force: str, reason: str, *, used: bool = False) -> None:
        super().__init__(f"conflict: unable to delete {short_id(record.id)} ({force}) - {reason}")
        self.used = used


def _is_single(references: Sequence[Reference]) -> bool:
    """Whether there is at most one tag, and digests of its repository only."""
    tags = [one for one in references if not one.digest]
    repositories = {one.name for one in references}
    return len(tags) <= 1 and len(repositories) <= 1
