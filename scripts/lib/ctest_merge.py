"""Joins the tests of several build folders into one ctest run, so that one summary counts them all.

usage: ctest_merge.py OUT_FOLDER [PREFIX=BUILD_FOLDER=WHICH[=LAUNCHER...]]...

Each source gives the tests of which a label or the name matches WHICH (a regular expression; empty: all), named
PREFIX + name and started through LAUNCHER. Writes OUT_FOLDER/CTestTestfile.cmake.
"""

import json
import re
import subprocess
import sys
from pathlib import Path


def quoted(value):
    if value is True or value is False:
        return "TRUE" if value else "FALSE"
    if isinstance(value, list):
        value = ";".join(str(v) for v in value)
    value = str(value)
    closing = "]=="
    while closing + "]" in value:
        closing += "="
    return f"[{closing[1:]}[{value}{closing}]"


def tests_of(folder):
    out = subprocess.run(["ctest", "--test-dir", folder, "--show-only=json-v1"], capture_output=True, check=True)
    for test in json.loads(out.stdout)["tests"]:
        properties = {p["name"]: p["value"] for p in test.get("properties", [])}
        if "command" not in test:
            sys.exit(f"{folder}: the program of test {test['name']} was not built")
        yield test["name"], test["command"], properties


def main():
    out = Path(sys.argv[1])
    lines = []
    for source in sys.argv[2:]:
        prefix, folder, which, *launcher = source.split("=")
        for name, command, properties in tests_of(folder):
            test_labels = properties.get("LABELS", [])
            if which and not any(re.fullmatch(which, word) for word in [name, *test_labels]):
                continue
            if prefix:
                properties["LABELS"] = test_labels + [prefix.rstrip(".")]
            full = quoted(prefix + name)
            lines.append(f"add_test({full} {' '.join(quoted(c) for c in launcher + command)})")
            settings = " ".join(f"{key} {quoted(value)}" for key, value in properties.items())
            if settings:
                lines.append(f"set_tests_properties({full} PROPERTIES {settings})")
    out.mkdir(parents=True, exist_ok=True)
    (out / "CTestTestfile.cmake").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
