// What the tensor-core kernels of attention share: barriers and asynchronous copies between memories, the swizzled
// tiles in shared memory that wgmma reads, and wgmma itself. Facts: PTX ISA, "Asynchronous Warpgroup Level Matrix
// Instructions".
#pragma once
#include "ops/cuda/kernel.cuh"

namespace furlong::cuda::attn {

__device__ inline uint32_t shared_address(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

// ---- barriers in shared memory ----
__device__ inline void barrier_init(uint64_t* b, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(b)), "r"(arrivals));
}
__device__ inline void barrier_arrive(uint64_t* b) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(b)) : "memory");
}
// Waits for the end of the phase of this parity; of a new barrier the phase before the first (parity 1) has ended.
__device__ inline void barrier_wait(uint64_t* b, uint32_t parity) {
  asm volatile(
      "{\n.reg .pred p;\n"
      "again:\nmbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n"
      "@p bra done;\nbra again;\ndone:\n}" ::"r"(shared_address(b)),
      "r"(parity)
      : "memory");
}

__device__ inline bool barrier_passed(uint64_t* b, uint32_t parity) {
  uint32_t passed;
  asm volatile("{\n.reg .pred p;\nmbarrier.test_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
               : "=r"(passed)
               : "r"(shared_address(b)), "r"(parity)
               : "memory");
  return passed != 0;
}

// ---- copies into shared memory ----
// 16 bytes; zeros where !valid.
__device__ inline void copy_16(uint32_t to, const void* from, bool valid) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(valid ? 16 : 0)
               : "memory");
}
// 4 bytes, likewise.
__device__ inline void copy_4(uint32_t to, const void* from, bool valid) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(from), "r"(valid ? 4 : 0) : "memory");
}
__device__ inline void copies_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int Pending>
__device__ inline void copies_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
}
__device__ inline void copies_wait_all() { asm volatile("cp.async.wait_all;" ::: "memory"); }
// Orders what was written to shared memory, as far as this thread knows of it, before what the tensor cores read of it.
__device__ inline void fence_for_wgmma() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// This thread arrives at the barrier once all its copies so far have ended.
__device__ inline void announce_copies(uint64_t* full) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(shared_address(full)) : "memory");
}
// Waits for what others copied, to be read by the tensor cores.
__device__ inline void wait_for_tile(uint64_t* full, uint32_t parity) {
  barrier_wait(full, parity);
  fence_for_wgmma();
}

// A producer thread's groups of copies end in their order. It tells a group's barrier when two later groups are under
// way, or before it has to wait itself.
class Announcer {
 public:
  __device__ void commit(uint64_t* full) {
    copies_commit();
    if (pending_[0] != nullptr) {
      copies_wait<2>();
      fence_for_wgmma();
      barrier_arrive(pending_[0]);
    }
    pending_[0] = pending_[1];
    pending_[1] = full;
  }
  __device__ void flush() {
    if (pending_[1] == nullptr) return;
    copies_wait<0>();
    fence_for_wgmma();
    if (pending_[0] != nullptr) barrier_arrive(pending_[0]);
    barrier_arrive(pending_[1]);
    pending_[0] = pending_[1] = nullptr;
  }
  __device__ void wait(uint64_t* empty, uint32_t parity) {
    if (barrier_passed(empty, parity)) return;
    flush();
    barrier_wait(empty, parity);
  }

 private:
  uint64_t* pending_[2] = {nullptr, nullptr};
};

// ---- tiles ----
// A tile of rows of 256 bf16 numbers lies in four panels of 64 columns; in a panel a row takes 128 bytes, whose 16-byte
// pieces are exchanged by the row's low bits ("128-byte swizzle"). Tiles begin at multiples of 1024 bytes.
constexpr int wide = 256;  // head_dim of the tensor-core kernels
constexpr int row_bytes = wide * 2, panel_bytes_per_row = 128, pieces = row_bytes / 16;

template <int Rows>
__device__ inline uint32_t piece_offset(int row, int piece) {
  return (piece / 8) * (Rows * panel_bytes_per_row) + row * panel_bytes_per_row + ((piece % 8) ^ (row % 8)) * 16;
}

// wgmma's description of a tile: K-major operands step over rows in groups of 8 (1024 bytes). For operands whose rows
// are the summed dimension ("transposed"), `panel` is the distance between panels.
__device__ inline uint64_t descriptor(uint32_t address, uint32_t panel) {
  return static_cast<uint64_t>((address & 0x3ffff) >> 4) | static_cast<uint64_t>(panel >> 4) << 16 |
         static_cast<uint64_t>(1024 >> 4) << 32 | uint64_t{1} << 62;
}

// ---- wgmma ----
__device__ inline void wgmma_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int Pending>
__device__ inline void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(Pending) : "memory");
}
// Keeps the compiler from moving uses of accumulators across this point.
template <int N>
__device__ inline void pin(float (&d)[N]) {
#pragma unroll
  for (int i = 0; i < N; i++) asm volatile("" : "+f"(d[i])::"memory");
}
template <int N>
__device__ inline void pin(uint32_t (&d)[N]) {
#pragma unroll
  for (int i = 0; i < N; i++) asm volatile("" : "+r"(d[i])::"memory");
}

#define FURLONG_F4(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define FURLONG_F16(d, i) FURLONG_F4(d, i), FURLONG_F4(d, i + 4), FURLONG_F4(d, i + 8), FURLONG_F4(d, i + 12)
#define FURLONG_F64(d, i) FURLONG_F16(d, i), FURLONG_F16(d, i + 16), FURLONG_F16(d, i + 32), FURLONG_F16(d, i + 48)

// d (64, N) = or += a (64, 16) b (N, 16)^T, both K-major in shared memory. Entry (8 i + 2 (lane % 4) + e) of row
// 16 warp + lane / 4 + 8 h lies in d[4 i + 2 h + e].
__device__ inline void wgmma_ss(float (&d)[32], uint64_t a, uint64_t b, bool add) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, "
      "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
      "}, %32, %33, p, 1, 1, 0, 0;\n}"
      : FURLONG_F16(d, 0), FURLONG_F16(d, 16)
      : "l"(a), "l"(b), "r"(static_cast<int>(add)));
}
__device__ inline void wgmma_ss(float (&d)[40], uint64_t a, uint64_t b, bool add) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %42, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n80k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, "
      "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39"
      "}, %40, %41, p, 1, 1, 0, 0;\n}"
      : FURLONG_F16(d, 0), FURLONG_F16(d, 16), FURLONG_F4(d, 32), FURLONG_F4(d, 36)
      : "l"(a), "l"(b), "r"(static_cast<int>(add)));
}

// d (64, 256) += a (64, 16) b (16, 256): a in registers (laid out as d is, rounded), b's rows in shared memory.
__device__ inline void wgmma_rs(float (&d)[128], const uint32_t* a, uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, "
      "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, "
      "%42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, "
      "%62, %63, %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, "
      "%82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, %96, %97, %98, %99, %100, "
      "%101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, %112, %113, %114, %115, %116, "
      "%117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
      "}, {%128, %129, %130, %131}, %132, 1, 1, 1, 1;"
      : FURLONG_F64(d, 0), FURLONG_F64(d, 64)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

#undef FURLONG_F4
#undef FURLONG_F16
#undef FURLONG_F64

__device__ inline uint32_t pack(float low, float high) {
  const __nv_bfloat162 v = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&v);
}
// Accumulators as the operand a of wgmma_rs, four registers per 16 columns.
template <int N>
__device__ inline void pack(uint32_t (&p)[N], const float (&s)[2 * N]) {
#pragma unroll
  for (int i = 0; i < N; i++) p[i] = pack(s[2 * i], s[2 * i + 1]);
}

// d = a bᵀ over 256 columns: a has ARows rows in its tile of which 64 from `a` on are used, b has BRows.
template <int ARows, int BRows, int N>
__device__ inline void product(float (&d)[N], uint32_t a, uint32_t b) {
  wgmma_begin();
#pragma unroll
  for (int i = 0; i < wide / 16; i++) {
    const uint32_t at = i % 4 * 32;
    wgmma_ss(d, descriptor(a + i / 4 * (ARows * panel_bytes_per_row) + at, 16),
             descriptor(b + i / 4 * (BRows * panel_bytes_per_row) + at, 16), i > 0);
  }
  wgmma_commit();
}
// d += p b: p (64, Rows) in registers, b a tile of Rows rows.
template <int Rows>
__device__ inline void accumulate(float (&d)[128], const uint32_t (&p)[Rows / 4], uint32_t b) {
  wgmma_begin();
#pragma unroll
  for (int i = 0; i < Rows / 16; i++) {
    wgmma_rs(d, p + 4 * i, descriptor(b + i * 16 * panel_bytes_per_row, Rows * panel_bytes_per_row));
  }
  wgmma_commit();
}

template <int Registers>
__device__ inline void registers_up() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(Registers));
}
template <int Registers>
__device__ inline void registers_down() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(Registers));
}

}  // namespace furlong::cuda::attn
