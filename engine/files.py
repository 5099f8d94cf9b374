"""Writing files whole or not at all. It imports nothing that takes time, so that report.py can use it."""

import os

OLD = ".old-"  # between the name of a run folder that --overwrite moved aside and the time


def write_text(path, text):
    """Write a UTF-8 text file (path: a Path) so that at any time it is whole: the old one or the new one."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
