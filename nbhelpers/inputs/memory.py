"""The memory of this machine, asked without torch, whose import takes seconds."""

import contextlib
from pathlib import Path

import psutil

# Of Linux, where containers have limits.
CGROUPS, MEMBERSHIP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
# Files of a group's limit, of what it uses and, in its memory.stat, of what it would give back: version 1, 2.
ACCOUNTS = (
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ("memory.max", "memory.current", "inactive_file"),
)


def available_memory():
    """Return the bytes that the system can give without swapping."""
    return min([psutil.virtual_memory().available, *left_to_groups()])


def left_to_groups():
    """Return the bytes that the memory limits of this process's groups leave, of a container as a rule."""
    left = []
    for line in MEMBERSHIP.read_text().splitlines() if MEMBERSHIP.exists() else ():
        _, controllers, path = line.split(":", 2)
        version = 0 if controllers else 1
        if controllers and "memory" not in controllers.split(","):
            continue
        for root in {CGROUPS, CGROUPS / ("memory", "unified")[version]}:
            own = root / path.strip("/")  # not there where a container sees its own group as the root
            for group in (above for above in (own, *own.parents) if above.is_relative_to(root)):
                with contextlib.suppress(OSError, ValueError):  # no such group, or "max": no limit
                    limit, used, cached = ACCOUNTS[version]
                    stat = dict(pair.split() for pair in (group / "memory.stat").read_text().splitlines())
                    used = int((group / used).read_text()) - int(stat.get(cached, 0))
                    left.append(max(0, int((group / limit).read_text()) - used))
    return left
