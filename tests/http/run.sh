#!/bin/sh
# Runs the HTTP tests against a real turbod ($TURBOD, else the build tree's).
here=$(cd "$(dirname "$0")" && pwd) || exit 99
if ! python3 -m pytest --version >/dev/null 2>&1; then
    echo "SKIP: python3-pytest is not installed; apt install python3-pytest"
    exit 77
fi
PYTHONDONTWRITEBYTECODE=1 exec python3 -m pytest -q -p no:cacheprovider -rs "$here" "$@"
