"""Whether a file is still in the state in which it was first seen, told without reading it.

Promises: a file that was rewritten in place counts as changed, also where its time of writing was set back: the time of
its last change is kept by the system, and nobody can set it. Linking, deleting, or giving away a file moves that time
too and no byte; it is told by what it leaves, and passed over. Refuses to know what is in the file.
"""

import os

import attrs


@attrs.frozen
class FileIdentity:
    """One state of one file."""

    device: int
    inode: int
    size_bytes: int
    modified_ns: int
    changed_ns: int
    standing: tuple[int, int, int, int]  # names, mode, owner, group

    @classmethod
    def of(cls, stat: os.stat_result) -> "FileIdentity":
        standing = (stat.st_nlink, stat.st_mode, stat.st_uid, stat.st_gid)
        return cls(stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, standing)

    @property
    def name(self) -> str:
        """The same for two looks at one file only if nothing has happened to it in between."""
        parts = (self.device, self.inode, self.size_bytes, self.modified_ns, self.changed_ns, *self.standing)
        return ":".join(f"{part:x}" for part in parts)

    def still(self, now: "FileIdentity") -> bool:
        """Whether `now` is the same content, as far as this can tell."""
        mine = (self.device, self.inode, self.size_bytes, self.modified_ns)
        same = mine == (now.device, now.inode, now.size_bytes, now.modified_ns)
        return same and (self.changed_ns == now.changed_ns or self.standing != now.standing)
