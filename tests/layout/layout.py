"""The shape of the tree: which way includes point, how long files are, that nothing names one machine, and that
scripts/install-deps brings every library that CMake asks for.

usage: layout.py ROOT    prints each violation and exits 1 if there is one

The ranks are those of docs/ARCHITECTURE.md: an include goes from a module to itself or to a module of lower rank.
"""

import os
import re
import sys
from pathlib import Path

MODULES = {  # folder -> rank; the longest matching folder owns a file
    "common": 0,
    "engine/kernels": 1,
    "engine/text": 1,
    "engine/kvcache": 2,
    "engine/tensorpar": 2,
    "engine/sampling": 2,
    "engine/model": 3,
    "engine/batching": 4,
    "engine": 5,
    "server": 6,
    "router": 6,
    "retrieval": 6,
    "loadtest": 6,
    "cli": 6,
    "bench": 7,
    "tests": 7,
}
# What a module may include, where the ranks alone would allow more.
ONLY_FROM = {
    "engine/batching": {"common", "engine/kvcache"},
    "server": {"common", "engine", "engine/text"},
    "cli": {"common"},
}
LINES_MAX = 1000
SKIPPED_FOLDERS = {"build", "__pycache__", "artifacts", "node_modules"}
CODE = {".c", ".h", ".cc", ".cpp", ".cu", ".cuh", ".def", ".inc"}
LINES_COUNTED = CODE | {".py", ".sh", ".cmake", ""}
TEXT = LINES_COUNTED | {".md", ".txt", ".json", ".yml", ".yaml", ".toml", ".cfg", ".ini", ".conf", ".service"}

INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*"([^"\n]+)"', re.M)
MACHINE = [
    (re.compile(r"(?<![\w.$}~/])/(?:root|home|Users|work|mnt)/[\w.]"), "a path of one machine"),
    (re.compile(r"(?<![\w.$}~/])/opt/(?!cuda|nvidia)\w"), "a path of one machine"),
    (re.compile(r"\b(?:10|192\.168|172\.(?:1[6-9]|2\d|3[01]))(?:\.\d{1,3}){2,3}\b(?![.\d/])"), "a private address"),
    (re.compile(r"\b[\w-]+\.(?:internal|corp|lan|localdomain)\b(?!\()"), "a host name"),
]


def files_of(root):
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(f for f in folders if f not in SKIPPED_FOLDERS and not f.startswith((".git", ".cache", ".venv")))
        for name in sorted(names):
            path = Path(folder, name)
            if not path.is_symlink():
                yield path.relative_to(root).as_posix(), path


def module_of(relative):
    folder = os.path.dirname(relative)
    while folder:
        if folder in MODULES:
            return folder
        folder = os.path.dirname(folder)
    return None


def include_target(root, relative, name):
    """The file that an #include "name" in relative means: beside it, or from the root."""
    for candidate in (os.path.normpath(os.path.join(os.path.dirname(relative), name)), os.path.normpath(name)):
        if (root / candidate).is_file():
            return candidate
    return None


def include_violation(root, relative, name):
    target = include_target(root, relative, name)
    if target is None:
        return f'"{name}" is not a file of the tree'
    source, owner = module_of(relative), module_of(target)
    if target != os.path.normpath(name) and source not in ("tests", "bench"):
        return f'"{name}": write the path from the root, "{target}"'
    if owner is None or source is None:
        return None if source is None else f'"{name}" belongs to no module'
    if source == owner:
        return None
    if MODULES[owner] >= MODULES[source]:
        return f'"{name}": {owner} (rank {MODULES[owner]}) is not below {source} (rank {MODULES[source]})'
    if source in ONLY_FROM and owner not in ONLY_FROM[source]:
        return f'"{name}": {source} may include {", ".join(sorted(ONLY_FROM[source]))} only'
    if source == "server" and owner != "common" and target not in ("engine/engine.h", "engine/text/text.h"):
        return f'"{name}": of the engine, server includes engine/engine.h and engine/text/text.h only'
    if target.endswith("_int.h") and MODULES[source] < MODULES["tests"]:
        return f'"{name}" is private to {owner}'
    return None


def missing_packages(root):
    installed = root / "scripts/install-deps"
    known = set(re.findall(r"pkg-config --exists (\S+)", installed.read_text())) if installed.is_file() else set()
    for relative in ("CMakeLists.txt", "tests/CMakeLists.txt"):
        path = root / relative
        for asked in re.findall(r"^pkg_check_modules\(\w+([^)]*)\)", path.read_text(), re.M) if path.is_file() else []:
            for module in set(asked.split()) - {"REQUIRED", "IMPORTED_TARGET", "QUIET"} - known:
                yield f"{relative}: scripts/install-deps does not look for {module}"


def violations(root):
    root = Path(root)
    yield from missing_packages(root)
    for relative, path in files_of(root):
        suffix = path.suffix
        if suffix not in TEXT:
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        if "/fixtures/" not in f"/{relative}":
            if suffix in LINES_COUNTED and text.count("\n") > LINES_MAX and relative != "LICENSE":
                yield f"{relative}: {text.count(chr(10))} lines; over {LINES_MAX} it is two files"
            for pattern, what in MACHINE:
                for match in pattern.finditer(text):
                    if not relative.startswith("tests/layout/"):
                        line = text.count("\n", 0, match.start()) + 1
                        yield f"{relative}:{line}: {match.group()!r} is {what}"
        if suffix in CODE:
            for match in INCLUDE.finditer(text):
                problem = include_violation(root, relative, match.group(1))
                if problem:
                    line = text.count("\n", 0, match.start(1)) + 1
                    yield f"{relative}:{line}: {problem}"


def main():
    found = list(violations(sys.argv[1]))
    print(*found, sep="\n")
    print(f"{len(found)} violation(s) of the layout")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
