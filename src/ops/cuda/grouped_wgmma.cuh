// The wgmma instruction m64 x Width x k16 in bf16 with fp32 sums, for every Width of tokens the grouped products use.
#pragma once
#include <cstdint>

namespace furlong::cuda::grouped {

// The operands %0 ... %(8n - 1) of an instruction with 8n sums, and the sums bound to them.
#define FURLONG_NAMES_1 "%0, %1, %2, %3, %4, %5, %6, %7"
#define FURLONG_NAMES_2 FURLONG_NAMES_1 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define FURLONG_NAMES_3 FURLONG_NAMES_2 ", %16, %17, %18, %19, %20, %21, %22, %23"
#define FURLONG_NAMES_4 FURLONG_NAMES_3 ", %24, %25, %26, %27, %28, %29, %30, %31"
#define FURLONG_NAMES_5 FURLONG_NAMES_4 ", %32, %33, %34, %35, %36, %37, %38, %39"
#define FURLONG_NAMES_6 FURLONG_NAMES_5 ", %40, %41, %42, %43, %44, %45, %46, %47"
#define FURLONG_NAMES_7 FURLONG_NAMES_6 ", %48, %49, %50, %51, %52, %53, %54, %55"
#define FURLONG_NAMES_8 FURLONG_NAMES_7 ", %56, %57, %58, %59, %60, %61, %62, %63"
#define FURLONG_NAMES_9 FURLONG_NAMES_8 ", %64, %65, %66, %67, %68, %69, %70, %71"
#define FURLONG_NAMES_10 FURLONG_NAMES_9 ", %72, %73, %74, %75, %76, %77, %78, %79"
#define FURLONG_NAMES_11 FURLONG_NAMES_10 ", %80, %81, %82, %83, %84, %85, %86, %87"
#define FURLONG_NAMES_12 FURLONG_NAMES_11 ", %88, %89, %90, %91, %92, %93, %94, %95"
#define FURLONG_NAMES_13 FURLONG_NAMES_12 ", %96, %97, %98, %99, %100, %101, %102, %103"
#define FURLONG_NAMES_14 FURLONG_NAMES_13 ", %104, %105, %106, %107, %108, %109, %110, %111"
#define FURLONG_NAMES_15 FURLONG_NAMES_14 ", %112, %113, %114, %115, %116, %117, %118, %119"
#define FURLONG_NAMES_16 FURLONG_NAMES_15 ", %120, %121, %122, %123, %124, %125, %126, %127"
#define FURLONG_SUMS(i)                                                                                       \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), \
      "+f"(d[i + 7])
#define FURLONG_SUMS_1 FURLONG_SUMS(0)
#define FURLONG_SUMS_2 FURLONG_SUMS_1, FURLONG_SUMS(8)
#define FURLONG_SUMS_3 FURLONG_SUMS_2, FURLONG_SUMS(16)
#define FURLONG_SUMS_4 FURLONG_SUMS_3, FURLONG_SUMS(24)
#define FURLONG_SUMS_5 FURLONG_SUMS_4, FURLONG_SUMS(32)
#define FURLONG_SUMS_6 FURLONG_SUMS_5, FURLONG_SUMS(40)
#define FURLONG_SUMS_7 FURLONG_SUMS_6, FURLONG_SUMS(48)
#define FURLONG_SUMS_8 FURLONG_SUMS_7, FURLONG_SUMS(56)
#define FURLONG_SUMS_9 FURLONG_SUMS_8, FURLONG_SUMS(64)
#define FURLONG_SUMS_10 FURLONG_SUMS_9, FURLONG_SUMS(72)
#define FURLONG_SUMS_11 FURLONG_SUMS_10, FURLONG_SUMS(80)
#define FURLONG_SUMS_12 FURLONG_SUMS_11, FURLONG_SUMS(88)
#define FURLONG_SUMS_13 FURLONG_SUMS_12, FURLONG_SUMS(96)
#define FURLONG_SUMS_14 FURLONG_SUMS_13, FURLONG_SUMS(104)
#define FURLONG_SUMS_15 FURLONG_SUMS_14, FURLONG_SUMS(112)
#define FURLONG_SUMS_16 FURLONG_SUMS_15, FURLONG_SUMS(120)

// d += a · b for a (64,16) and b (16,Width) in shared memory, by their descriptors, by the four warps of a group. An
// operand is "across" when its rows lie along the product's free dimension instead of the summed one. Thread t of the
// group holds in d[4 j + i] the entry at row 16 (t / 32) + t % 32 / 4 + 8 (i / 2), column 8 j + 2 (t % 4) + i % 2.
template <int Width, int AcrossA, int AcrossB>
struct Wgmma;

#define FURLONG_WGMMA(width, eighths, a_name, b_name, ta_name, tb_name)                            \
  template <int AcrossA, int AcrossB>                                                              \
  struct Wgmma<width, AcrossA, AcrossB> {                                                          \
    static __device__ __forceinline__ void add(float (&d)[width / 2], uint64_t a, uint64_t b) {    \
      asm volatile(                                                                                \
          "{\n.reg .pred p;\nsetp.eq.b32 p, 0, 0;\n"                                               \
          "wgmma.mma_async.sync.aligned.m64n" #width "k16.f32.bf16.bf16 {" FURLONG_NAMES_##eighths \
          "}, " a_name ", " b_name ", p, 1, 1, " ta_name ", " tb_name ";\n}\n"                     \
          : FURLONG_SUMS_##eighths                                                                 \
          : "l"(a), "l"(b), "n"(AcrossA), "n"(AcrossB));                                           \
    }                                                                                              \
  };
FURLONG_WGMMA(16, 1, "%8", "%9", "%10", "%11")
FURLONG_WGMMA(32, 2, "%16", "%17", "%18", "%19")
FURLONG_WGMMA(64, 4, "%32", "%33", "%34", "%35")
FURLONG_WGMMA(96, 6, "%48", "%49", "%50", "%51")
FURLONG_WGMMA(128, 8, "%64", "%65", "%66", "%67")
FURLONG_WGMMA(144, 9, "%72", "%73", "%74", "%75")
FURLONG_WGMMA(160, 10, "%80", "%81", "%82", "%83")
FURLONG_WGMMA(192, 12, "%96", "%97", "%98", "%99")
FURLONG_WGMMA(224, 14, "%112", "%113", "%114", "%115")
FURLONG_WGMMA(256, 16, "%128", "%129", "%130", "%131")

#undef FURLONG_WGMMA
}  // namespace furlong::cuda::grouped
