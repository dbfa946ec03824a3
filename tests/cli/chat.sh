#!/bin/sh
# tests/cli/chat.sh: the dialogue on a terminal; see chat.py.
command -v python3 > /dev/null || { echo "SKIP: python3 is not installed"; exit 77; }
exec python3 "${srcdir:-.}/tests/cli/chat.py"
