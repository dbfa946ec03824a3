#!/bin/sh
# Runs the HTTP tests against a real turbod ($TURBOD, else the build tree's).
here=$(cd "$(dirname "$0")" && pwd) || exit 99
# Debian's pytest belongs to Debian's python3, which need not be the first one on PATH.
for python in python3 /usr/bin/python3; do
    if $python -m pytest --version >/dev/null 2>&1; then
        PYTHONDONTWRITEBYTECODE=1 exec $python -m pytest -q -p no:cacheprovider -rs "$here" "$@"
    fi
done
echo "SKIP: python3-pytest is not installed; apt install python3-pytest"
exit 77
