#!/bin/sh
# SIGTERM and SIGHUP under load, CHAOS_SIGNALS times each (5); see signals.py.
exec python3 "$srcdir/tests/chaos/signals.py" "${CHAOS_SIGNALS:-5}" "$CHAOS_SEED"
