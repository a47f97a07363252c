// Tensor-core tiles of the delta rule for heads of 128: bf16 images in shared memory, fragments, products, bulk copies.
#pragma once
#include "ops/cuda/delta.cuh"

namespace furlong::cuda::delta {

constexpr int head_dim = 128;

// Where (row, column) of a bf16 image of C columns lies: pieces of 8 numbers are permuted within 128 bytes so that the
// same piece of eight consecutive rows touches every bank once.
template <int C>
__device__ inline int place(int row, int column) {
  static_assert(C == 32 || C == 64 || C == 128);
  const int turn = C == 32 ? (row >> 1) & 3 : row & 7;
  return row * C + ((((column >> 3) ^ turn) << 3) | (column & 7));
}

__device__ inline uint32_t shared_address(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

__device__ inline uint32_t pack(float low, float high) {
  const __nv_bfloat162 x = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&x);
}
__device__ inline float2 unpack(uint32_t x) { return __bfloat1622float2(*reinterpret_cast<__nv_bfloat162*>(&x)); }

__device__ inline void matrices(uint32_t (&r)[4], const half_t* p) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(p)));
}
__device__ inline void matrices_transposed(uint32_t (&r)[4], const half_t* p) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(p)));
}

// The fragment of A = M[m0..m0+16, k0..k0+16] of an image M with C columns.
template <int C>
__device__ inline void load_a(uint32_t (&a)[4], const half_t* image, int m0, int k0) {
  const int lane = threadIdx.x % warp;
  matrices(a, image + place<C>(m0 + lane % 16, k0 + lane / 16 * 8));
}
// The fragment of A = Mᵀ, that is A(m,k) = M(k,m).
template <int C>
__device__ inline void load_a_transposed(uint32_t (&a)[4], const half_t* image, int m0, int k0) {
  const int lane = threadIdx.x % warp, i = lane / 8;
  matrices_transposed(a, image + place<C>(k0 + i / 2 * 8 + lane % 8, m0 + i % 2 * 8));
}
// Fragments of B = M[k0..k0+16, n0..n0+16]: those of the first eight columns, then of the other eight.
template <int C>
__device__ inline void load_b(uint32_t (&b)[4], const half_t* image, int k0, int n0) {
  const int lane = threadIdx.x % warp, i = lane / 8;
  matrices_transposed(b, image + place<C>(k0 + i % 2 * 8 + lane % 8, n0 + i / 2 * 8));
}
// The same of B = Mᵀ, that is B(k,n) = M(n,k).
template <int C>
__device__ inline void load_b_transposed(uint32_t (&b)[4], const half_t* image, int k0, int n0) {
  const int lane = threadIdx.x % warp, i = lane / 8;
  matrices(b, image + place<C>(n0 + i / 2 * 8 + lane % 8, k0 + i % 2 * 8));
}

// A tile of 8 x 8 numbers in registers, transposed.
__device__ inline uint32_t turned(uint32_t tile) {
  uint32_t r;
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(r) : "r"(tile));
  return r;
}

__device__ inline void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// c (16, 8N) += A·B over k in [k0, k1): the left operand by rows (or columns, where transposed) of an image of CA
// columns from m0, the right one by an image of CB columns from column n0 (from row n0, where transposed).
template <int CA, bool TransposeA, int CB, bool TransposeB, int N>
__device__ inline void multiply(float (&c)[N][4], const half_t* a, int m0, const half_t* b, int n0, int k0, int k1) {
#pragma unroll
  for (int k = k0; k < k1; k += 16) {
    uint32_t x[4];
    if constexpr (TransposeA) {
      load_a_transposed<CA>(x, a, m0, k);
    } else {
      load_a<CA>(x, a, m0, k);
    }
#pragma unroll
    for (int n = 0; n < N; n += 2) {
      uint32_t y[4];
      if constexpr (TransposeB) {
        load_b_transposed<CB>(y, b, k, n0 + n * 8);
      } else {
        load_b<CB>(y, b, k, n0 + n * 8);
      }
      mma(c[n], x, y[0], y[1]);
      mma(c[n + 1], x, y[2], y[3]);
    }
  }
}

// The fragments of A = M[m0..m0+16, :] (of A = Mᵀ where transposed), to be at hand before B is.
template <int C, bool Transpose, int Steps>
__device__ inline void load_left(uint32_t (&a)[Steps][4], const half_t* image, int m0) {
#pragma unroll
  for (int k = 0; k < Steps; k++) {
    if constexpr (Transpose) {
      load_a_transposed<C>(a[k], image, m0, k * 16);
    } else {
      load_a<C>(a[k], image, m0, k * 16);
    }
  }
}

// c (16, 8N) += A·B with the first columns of an image B of C columns.
template <int C, int Steps, int N>
__device__ inline void multiply_left(float (&c)[N][4], const uint32_t (&a)[Steps][4], const half_t* b) {
#pragma unroll
  for (int k = 0; k < Steps; k++) {
#pragma unroll
    for (int n = 0; n < N; n += 2) {
      uint32_t y[4];
      load_b<C>(y, b, k * 16, n * 8);
      mma(c[n], a[k], y[0], y[1]);
      mma(c[n + 1], a[k], y[2], y[3]);
    }
  }
}

// An accumulator holds rows row(0), row(1) = row(0) + 8 and columns column(n), column(n) + 1 of tile n.
__device__ inline int tile_row() { return threadIdx.x % warp / 4; }
__device__ inline int tile_column() { return threadIdx.x % 4 * 2; }

__device__ inline void barrier_start(uint64_t* b) {
  asm volatile("mbarrier.init.shared.b64 [%0], 1;" ::"r"(shared_address(b)));
}
__device__ inline void barriers_started() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
__device__ inline void barrier_expect(uint64_t* b, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(shared_address(b)), "r"(bytes) : "memory");
}
__device__ inline void barrier_wait(uint64_t* b, uint32_t parity) {
  asm volatile(
      "{\n.reg .pred done;\nagain:\nmbarrier.try_wait.parity.shared.b64 done, [%0], %1;\n@!done bra again;\n}" ::"r"(
          shared_address(b)),
      "r"(parity)
      : "memory");
}
__device__ inline void bulk_load(void* to, const void* from, uint32_t bytes, uint64_t* b) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                   shared_address(to)),
               "l"(from), "r"(bytes), "r"(shared_address(b))
               : "memory");
}
// A barrier of some of a block's warps.
template <int Id, int Threads>
__device__ inline void group_sync() {
  asm volatile("bar.sync %0, %1;" ::"n"(Id), "n"(Threads) : "memory");
}

// What the parallel part prepares of each chunk: at each key head the normalised rows, at each value head T = (I + L)⁻¹
// with L_ij = β_i ⟨k_i,k_j⟩ e^{γ_i-γ_j} (j < i) and P_ij = ⟨q_i,k_j⟩ e^{γ_i-γ_j} / sqrt(Dk) (j <= i), as images. Rows
// before the batch's own have what their ring says; after them β is zero: of T their rows are those of the identity.
struct KeyRecord {
  half_t k[chunk_rows * head_dim], q[chunk_rows * head_dim];
};
struct HeadRecord {
  half_t T[chunk_rows * chunk_rows], P[chunk_rows * chunk_rows];
  float beta[chunk_rows], e_gamma[chunk_rows], to_end[chunk_rows];  // β_i, e^{γ_i}, e^{γ_C-γ_i}
};
static_assert(sizeof(KeyRecord) % 128 == 0 && sizeof(HeadRecord) % 128 == 0);

struct Records {
  Plan plan;
  KeyRecord* keys;    // (chunks, Kh)
  HeadRecord* heads;  // (chunks, Vh)
};

// Scratch taken in pieces.
class Carve {
 public:
  explicit Carve(void* base = nullptr) : base_(static_cast<char*>(base)) {}
  template <class T>
  T* take(int64_t count) {
    const size_t at = used_;
    used_ += (static_cast<size_t>(count) * sizeof(T) + 127) / 128 * 128;
    return base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + at);
  }
  size_t used() const { return used_; }

 private:
  char* base_;
  size_t used_ = 0;
};

inline Records carve_records(Carve& carve, const Call& c) {
  const int64_t most = most_chunks(c.rows, c.segments);
  Records r{};
  r.plan.chunks = carve.take<Chunk>(most);
  r.plan.first = carve.take<int>(c.segments + 1);
  r.keys = carve.take<KeyRecord>(most * c.kh);
  r.heads = carve.take<HeadRecord>(most * c.vh);
  return r;
}

// Launches the parallel part. keep: also write the normalised rows and γ that the forward saves.
void prepare_128(Queue&, const Call&, const Records&, const Tensor& x, bool keep);

}  // namespace furlong::cuda::delta
