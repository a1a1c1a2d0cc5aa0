#!/bin/sh
# Runs one file of HTTP tests with the Python in CHOIR_TEST_PYTHON; 77 (skipped) where it lacks what they need.
python=${CHOIR_TEST_PYTHON:-python3}
"$python" -c 'import pytest, openai, httpx' 2>/dev/null || exit 77
export PYTHONDONTWRITEBYTECODE=1
exec "$python" -m pytest -q -p no:cacheprovider "$@"
