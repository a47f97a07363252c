#!/bin/sh
# run.sh N PROGRAM ARGS...: PROGRAM as N ranks on this host, however few its cores, as whichever user.
set -eu
ranks=$1
shift
root=
[ "$(id -u)" != 0 ] || root=--allow-run-as-root
exec mpirun $root --oversubscribe --bind-to none -n "$ranks" "$@"
