#!/bin/sh
# notice_test.sh FURLONG NOTICE: every library that the program links is named in NOTICE.
set -eu
notice=$2
missing=
for name in $(readelf -d "$1" | sed -n 's/.*(NEEDED).*\[\(.*\)\].*/\1/p'); do
  case $name in
    libc.so* | libm.so* | libdl.so* | librt.so* | libpthread.so* | ld-linux*) word='GNU C library' ;;
    libstdc++*) word='libstdc++' ;;
    libgcc_s*) word='libgcc' ;;
    libfmt*) word='fmt ' ;;
    libspdlog*) word=spdlog ;;
    libpcre2*) word=PCRE2 ;;
    libutf8proc*) word=utf8proc ;;
    libxxhash*) word=xxHash ;;
    libz.so*) word=zlib ;;
    libssl* | libcrypto*) word=OpenSSL ;;
    libyaml*) word=libyaml ;;
    libmpi* | libopen-*) word='Open MPI' ;;
    libcuda* | libcublas*) word='CUDA runtime' ;;
    libnccl*) word=NCCL ;;
    libasan* | libubsan* | libtsan* | liblsan*) continue ;;  # of a build for tests
    *) word="$name" ;;
  esac
  grep -qF -e "$word" "$notice" || missing="$missing $name"
done
if [ -n "$missing" ]; then
  printf 'notice_test: not named in %s:%s\n' "$notice" "$missing" >&2
  exit 1
fi
printf 'notice_test: passed\n'
