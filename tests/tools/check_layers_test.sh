#!/bin/sh
# tools/check-layers accepts the tree and finds each kind of violation in a made-up one.
set -eu
check=$(cd "$(dirname "$0")/../../tools" && pwd)/check-layers
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
mkdir -p "$root/src/base" "$root/src/tensor" "$root/src/ops/cpu" "$root/src/rl" "$root/src/rollout" "$root/src/data" "$root/src/model" "$root/src/parallel/cuda" "$root/apps/furlong"

fail() {
  printf 'check_layers_test: %s\n' "$*" >&2
  exit 1
}

# What is allowed.
printf '#include "tensor/tensor.h"\n#include "base/check.h"\n#include <vector>\n#include "ops/cpu/simd.h"\n' >"$root/src/ops/cpu/a.cpp"
printf '#include "model/weights.h"\n#include "data/prompts.h"\n#include <nlohmann/json.hpp>\n' >"$root/src/rl/a.cpp"
printf '#include "trainer/settings.h"\nint main() { return getenv("X") != 0; }\n' >"$root/apps/furlong/main.cpp"
printf '#include "base/json.h"\n' >"$root/src/data/json_row.h"
printf '#include "data/json_row.h"\n' >"$root/src/data/json_row.cpp"
printf '// forget env (not getenv)\n' >"$root/src/base/ok.h"
printf '#include <mpi.h>\n#include "tensor/tensor.h"\n' >"$root/src/parallel/mpi.cpp"
printf '#include <nccl.h>\n' >"$root/src/parallel/cuda/nccl.cpp"
found=$("$check" "$root") || fail "a sound tree was refused: $found"

# One violation at a time: file, text, the message expected.
try() {
  printf '%b' "$2" >"$root/$1"
  if found=$("$check" "$root"); then fail "not found in $1: $2"; fi
  case $found in
    "$1:$3"*) ;;
    *) fail "expected $1:$3, got: $found" ;;
  esac
  [ "$(printf '%s\n' "$found" | wc -l)" = 1 ] || fail "more than one line: $found"
  rm "$root/$1"
}
try src/base/b.h '#pragma once\n#include "tensor/tensor.h"\n' '2: room base may not include tensor/tensor.h'
try src/rl/b.h '#include "rollout/engine.h"\n' '1: room rl may not include rollout/engine.h'
try src/data/b.cpp '\n\n  #  include "tokenizer/bpe.h"\n' '3: room data may not include tokenizer/bpe.h'
try src/ops/b.cpp '#include "parallel/mesh.h"\n' '1: room ops may not include parallel/mesh.h'
try src/rl/b.cpp '#include "apps/x.h"\n' '1: room rl may not include apps/x.h'
try src/tensor/b.h '#include <nlohmann/json.hpp>\n' '1: nlohmann/json.hpp is heavy'
try src/data/b.h '\n#include "data/json_row.h"\n' '2: data/json_row.h brings in base/json.h'
try src/tensor/c.h '#include <pcre2.h>\n' '1: pcre2.h is heavy'
try src/model/a.cpp '#include <mpi.h>\n' '1: mpi.h is for .cpp files of src/parallel'
try src/parallel/a.h '\n#include <nccl.h>\n' '2: nccl.h is for .cpp files of src/parallel'
try src/tensor/b.cpp 'const char* x = std::getenv("X");\n' '1: getenv outside apps/'
try src/base/long.cpp "$(seq 1 601)\n" '601: 601 lines'
printf 'check_layers_test: passed\n'
