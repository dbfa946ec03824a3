#!/bin/sh
# Mixed requests with clients that leave, for CHAOS_SECONDS (60); see storm.c.
if "$TURBOD" --version | grep -q '^sanitizers *no$'; then CHAOS_SANITIZED=; else CHAOS_SANITIZED=1; fi
export CHAOS_SANITIZED
exec "$top_builddir/tests/chaos/storm" "${CHAOS_SECONDS:-60}" "${CHAOS_REQUESTS:-0}" "$CHAOS_SEED"
