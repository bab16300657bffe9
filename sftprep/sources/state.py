"""What tells that a file was written to, without reading it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

SETTLED_NS: Final = 2_000_000_000
"""How long a file must have been left alone before its times are believed.

The coarsest clock of a file system (FAT) counts two seconds; a file that is written twice in a tick keeps its times.
"""


@dataclass(frozen=True, slots=True)
class FileState:
    """Size, times and place on the disk.

    Whoever writes to a file, or puts another in its place, changes one of them; who sets a time back by hand changes
    `changed_ns`, which nobody sets.
    """

    num_bytes: int
    modified_ns: int
    changed_ns: int
    inode: int
    device: int

    @classmethod
    def of(cls, path: Path) -> FileState:
        """OSError where there is no such file."""
        status = path.stat()
        return cls(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev)

    def is_settled(self, now_ns: int) -> bool:
        """Whether the file was left alone for so long that its times tell of any write since."""
        return max(self.modified_ns, self.changed_ns) < now_ns - SETTLED_NS

    def is_same_content(self, other: FileState) -> bool:
        """Whether nothing was written between the two; a new name or other rights of the same file do not count."""
        mine = (self.num_bytes, self.modified_ns, self.inode, self.device)
        return mine == (other.num_bytes, other.modified_ns, other.inode, other.device)
