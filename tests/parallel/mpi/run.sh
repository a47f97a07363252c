#!/bin/sh
# run.sh N PROGRAM ARGS...: PROGRAM as N ranks on this host, however few its cores, as whichever user.
set -eu
ranks=$1
shift
root=
[ "$(id -u)" != 0 ] || root=--allow-run-as-root
# mpirun asks for ssh even where it needs none.
OMPI_MCA_plm_rsh_agent=${OMPI_MCA_plm_rsh_agent:-sh}
export OMPI_MCA_plm_rsh_agent
exec mpirun $root --oversubscribe --bind-to none -n "$ranks" "$@"
