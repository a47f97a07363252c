#!/bin/sh
# The demo, given the program: tools/demo.sh build/cpu/furlong
set -eu
furlong=$1
shift
"$furlong" --version
