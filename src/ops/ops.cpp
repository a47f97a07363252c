#include "ops/ops.h"

#include "ops/table.h"

namespace furlong {
namespace cpu {

namespace portable {
extern const OpTable table;
}
#ifdef FURLONG_X86
namespace avx2 {
extern const OpTable table;
}
namespace avx512 {
extern const OpTable table;
}
namespace avx512bf16 {
extern const OpTable table;
}
#endif

const std::vector<const OpTable*>& all_ops() {
  static const std::vector<const OpTable*> tables = [] {
    std::vector<const OpTable*> found;
#ifdef FURLONG_X86
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl")) {
      found.push_back(&avx512::table);
      // AMD's cores do as many dot products of pairs as multiply-adds, which halves the work. Intel's do a quarter.
      if (__builtin_cpu_supports("avx512bf16")) {
        found.insert(__builtin_cpu_is("amd") ? found.begin() : found.end(), &avx512bf16::table);
      }
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found.push_back(&avx2::table);
#endif
    found.push_back(&portable::table);
    return found;
  }();
  return tables;
}

const OpTable& ops(DType dtype) { return dtype == DType::f64 ? portable::table : *all_ops().front(); }

}  // namespace cpu

namespace ops {

std::string isa_name() { return cpu::all_ops().front()->isa; }

std::vector<std::string> compiled_isas() {
#ifdef FURLONG_X86
  return {"avx512bf16", "avx512", "avx2", "portable"};
#else
  return {"portable"};
#endif
}

}  // namespace ops
}  // namespace furlong
