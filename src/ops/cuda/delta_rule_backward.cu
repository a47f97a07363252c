// The delta rule backward for heads of any size, in fp32; the formulas are derived in ops/cpu/delta_rule_backward.cpp.
#include "ops/cuda/delta.cuh"

namespace furlong::cuda {
namespace delta {
namespace {

constexpr int threads = 256;
constexpr int wide = chunk_rows + 1;

template <class T>
struct Grads {
  const T *x, *do_;
  T* dx;
  int64_t x_stride, do_stride, dx_stride;
  float *dg, *dbeta, *dstate0;
  const float* dstate1;
  float *dq, *dk;  // (T, Vh, Dk): of each value head, to be summed over those of a key head
  float* work;     // of each block: floats_of_block
};

// Numbers a block keeps in device memory: D, and the arrays of a chunk's rows.
__host__ __device__ inline int64_t floats_of_block(int dk, int dv) {
  return static_cast<int64_t>(dk) * dv + chunk_rows * (5ll * dv + dk);
}

struct Shared {
  double gamma[chunk_rows], dgamma[chunk_rows];
  float beta[chunk_rows], dbeta[chunk_rows], e_gamma[chunk_rows], to_end[chunk_rows];
  float decay[chunk_rows * wide];  // e^{γ_i-γ_j}, zero above the diagonal
  float a[chunk_rows * wide], b[chunk_rows * wide], c[chunk_rows * wide];
  float sums[threads / warp];
};

// C(m,n) for m < rows, n < columns: a thread forms 4x4 numbers Σ_k a(m,k) b(k,n) at a time and gives them to put.
template <class A, class B, class Put>
__device__ void matmul(int rows, int columns, int depth, A a, B b, Put put) {
  const int down = (rows + 3) / 4, across = (columns + 3) / 4;
  for (int tile = threadIdx.x; tile < down * across; tile += threads) {
    const int m0 = tile / across, n0 = tile % across;
    float acc[4][4] = {};
    for (int k = 0; k < depth; k++) {
      float x[4], y[4];
#pragma unroll
      for (int i = 0; i < 4; i++) {
        x[i] = m0 + i * down < rows ? a(m0 + i * down, k) : 0.0f;
        y[i] = n0 + i * across < columns ? b(k, n0 + i * across) : 0.0f;
      }
#pragma unroll
      for (int i = 0; i < 4; i++) {
#pragma unroll
        for (int j = 0; j < 4; j++) acc[i][j] = fmaf(x[i], y[j], acc[i][j]);
      }
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
#pragma unroll
      for (int j = 0; j < 4; j++) {
        if (m0 + i * down < rows && n0 + j * across < columns) put(m0 + i * down, n0 + j * across, acc[i][j]);
      }
    }
  }
  __syncthreads();
}

// One value head over one segment, by a block, last chunk first.
template <class T>
struct HeadBackward {
  const Call& c;
  const Grads<T>& gr;
  Shared& sh;
  int segment, head;
  int n = 0, row = 0;  // of the chunk: its rows, the first
  const float *q, *k, *u, *state;
  int64_t k_stride, u_stride;
  float *D, *xs, *y, *dor, *vs, *part, *Du;

  __device__ float scale() const { return 1.0f / sqrtf(static_cast<float>(c.dk)); }
  __device__ float& dq(int i, int a) const { return gr.dq[(static_cast<int64_t>(row + i) * c.vh + head) * c.dk + a]; }
  __device__ float& dkey(int i, int a) const { return gr.dk[(static_cast<int64_t>(row + i) * c.vh + head) * c.dk + a]; }
  // A number per row: f(i) for every row, summed by a warp over its lanes' columns.
  template <class F>
  __device__ float row_sum(int columns, F f) const {
    float sum = 0;
    for (int j = threadIdx.x % warp; j < columns; j += warp) sum += f(j);
    return warp_sum(sum);
  }
  template <class F>
  __device__ void each_row(F f) const {
    for (int i = threadIdx.x / warp; i < n; i += threads / warp) f(i, threadIdx.x % warp);
    __syncthreads();
  }

  __device__ void load_chunk() {
    for (int i = threadIdx.x; i < n; i += threads) {
      const int64_t at = static_cast<int64_t>(row + i) * c.vh + head;
      sh.gamma[i] = c.gamma[at];
      sh.beta[i] = c.beta[at];
      sh.dgamma[i] = 0;
      sh.dbeta[i] = 0;
    }
    const int64_t v_at = 2ll * c.kh * c.dk + static_cast<int64_t>(head) * c.dv;
    for (int i = threadIdx.x; i < n * c.dv; i += threads) {
      const int64_t r = row + i / c.dv;
      const int b = i % c.dv;
      vs[i] = widen(gr.x[r * gr.x_stride + v_at + b]);
      dor[i] = widen(gr.do_[r * gr.do_stride + static_cast<int64_t>(head) * c.dv + b]);
    }
    __syncthreads();
    for (int i = threadIdx.x; i < n; i += threads) {
      sh.e_gamma[i] = expf(static_cast<float>(sh.gamma[i]));
      sh.to_end[i] = expf(static_cast<float>(sh.gamma[n - 1] - sh.gamma[i]));
    }
    for (int at = threadIdx.x; at < n * n; at += threads) {
      const int i = at / n, j = at % n;
      sh.decay[i * wide + j] = j <= i ? expf(static_cast<float>(sh.gamma[i] - sh.gamma[j])) : 0.0f;
    }
    __syncthreads();
  }

  // dγ_i += Σ_j flow_ij - Σ_j flow_ji of an array of the chunk.
  __device__ void add_flow(const float* flow) {
    each_row([&](int i, int lane) {
      const float sum = row_sum(n, [&](int j) { return flow[i * wide + j]; });
      const float other = row_sum(n, [&](int j) { return flow[j * wide + i]; });
      if (lane == 0) sh.dgamma[i] += static_cast<double>(sum) - other;
    });
  }

  // From o: dq, the part of dk through ⟨q,k⟩, and du = Pᵀ do (into xs).
  __device__ void output_part() {
    const float s = scale();
    matmul(
        n, n, c.dv, [&](int i, int b) { return dor[i * c.dv + b]; }, [&](int b, int j) { return u[j * u_stride + b]; },
        [&](int i, int j, float x) { sh.a[i * wide + j] = s * sh.decay[i * wide + j] * x; });
    matmul(
        n, n, c.dk, [&](int i, int a) { return q[i * k_stride + a]; },
        [&](int a, int j) { return k[j * k_stride + a]; },
        [&](int i, int j, float x) {
          sh.b[i * wide + j] = s * sh.decay[i * wide + j] * x;
          sh.c[i * wide + j] = sh.a[i * wide + j] * x;
        });
    add_flow(sh.c);
    matmul(
        n, c.dk, n, [&](int i, int j) { return sh.a[i * wide + j]; }, [&](int j, int a) { return k[j * k_stride + a]; },
        [&](int i, int a, float x) { dq(i, a) = x; });
    matmul(
        n, c.dk, n, [&](int j, int i) { return sh.a[i * wide + j]; }, [&](int i, int a) { return q[i * k_stride + a]; },
        [&](int j, int a, float x) { dkey(j, a) = x; });
    matmul(
        n, c.dv, n, [&](int j, int i) { return sh.b[i * wide + j]; }, [&](int i, int b) { return dor[i * c.dv + b]; },
        [&](int j, int b, float x) { xs[j * c.dv + b] = x; });
    matmul(
        n, c.dk, c.dv, [&](int i, int b) { return dor[i * c.dv + b]; },
        [&](int b, int a) { return state[static_cast<int64_t>(a) * c.dv + b]; },
        [&](int i, int a, float x) { Du[i * c.dk + a] = s * sh.e_gamma[i] * x; });
    each_row([&](int i, int lane) {
      const float sum = row_sum(c.dk, [&](int a) { return Du[i * c.dk + a] * q[i * k_stride + a]; });
      for (int a = lane; a < c.dk; a += warp) dq(i, a) += Du[i * c.dk + a];
      if (lane == 0) sh.dgamma[i] += sum;
    });
  }

  // From the state leaving the chunk: e^{γ_C-γ_j} k_j u_jᵀ and e^{γ_C} S.
  __device__ void state_part() {
    matmul(
        n, c.dk, c.dv, [&](int j, int b) { return u[j * u_stride + b]; },
        [&](int b, int a) { return D[static_cast<int64_t>(a) * c.dv + b]; },
        [&](int j, int a, float x) { Du[j * c.dk + a] = sh.to_end[j] * x; });
    matmul(
        n, c.dv, c.dk, [&](int j, int a) { return k[j * k_stride + a]; },
        [&](int a, int b) { return D[static_cast<int64_t>(a) * c.dv + b]; },
        [&](int j, int b, float x) { xs[j * c.dv + b] += sh.to_end[j] * x; });
    each_row([&](int j, int lane) {
      const float flow = row_sum(c.dk, [&](int a) { return Du[j * c.dk + a] * k[j * k_stride + a]; });
      for (int a = lane; a < c.dk; a += warp) dkey(j, a) += Du[j * c.dk + a];
      if (lane == 0) {
        sh.to_end[j] = flow;  // the factor is not needed any more
        sh.dgamma[j] -= flow;
      }
    });
    float sum = 0;
    for (int64_t i = threadIdx.x; i < c.state_size(); i += threads) sum = fmaf(state[i], D[i], sum);
    sum = block_sum<threads>(sum, sh.sums);
    if (threadIdx.x == 0) {
      double flow = static_cast<double>(sh.e_gamma[n - 1]) * sum;
      for (int j = 0; j < n; j++) flow += sh.to_end[j];
      sh.dgamma[n - 1] += flow;
    }
    __syncthreads();
  }

  // xs <- (I + L)⁻ᵀ xs; afterwards a: ⟨k_i,k_j⟩ e^{γ_i-γ_j}, b: L
  __device__ void solve_transposed() {
    matmul(
        n, n, c.dk, [&](int i, int a) { return k[i * k_stride + a]; },
        [&](int a, int j) { return k[j * k_stride + a]; },
        [&](int i, int j, float x) {
          const float product = x * sh.decay[i * wide + j];
          sh.a[i * wide + j] = product;
          sh.b[i * wide + j] = j < i ? sh.beta[i] * product : 0.0f;
        });
    for (int b = threadIdx.x; b < c.dv; b += threads) {
      for (int j = n - 2; j >= 0; j--) {
        float sum = 0;
#pragma unroll 4
        for (int i = j + 1; i < n; i++) sum = fmaf(sh.b[i * wide + j], xs[i * c.dv + b], sum);
        xs[j * c.dv + b] -= sum;
      }
    }
    __syncthreads();
  }

  // From the system (I + L) u = β (v - e^γ Sᵀk).
  __device__ void system_part() {
    matmul(
        n, c.dv, c.dk, [&](int i, int a) { return k[i * k_stride + a]; },
        [&](int a, int b) { return state[static_cast<int64_t>(a) * c.dv + b]; },
        [&](int i, int b, float x) { part[i * c.dv + b] = x; });
    const int64_t v_at = 2ll * c.kh * c.dk + static_cast<int64_t>(head) * c.dv;
    each_row([&](int i, int lane) {
      const float beta = sh.beta[i], decay = sh.e_gamma[i];
      const float along_v = row_sum(c.dv, [&](int b) { return xs[i * c.dv + b] * vs[i * c.dv + b]; });
      const float along_h = row_sum(c.dv, [&](int b) { return xs[i * c.dv + b] * part[i * c.dv + b]; });
      for (int b = lane; b < c.dv; b += warp) {
        gr.dx[(row + i) * gr.dx_stride + v_at + b] = narrow<T>(beta * xs[i * c.dv + b]);
        y[i * c.dv + b] = -beta * decay * xs[i * c.dv + b];
      }
      if (lane == 0) {
        sh.dbeta[i] += along_v - decay * along_h;
        sh.dgamma[i] -= beta * decay * along_h;
      }
    });
    matmul(
        n, c.dk, c.dv, [&](int i, int b) { return y[i * c.dv + b]; },
        [&](int b, int a) { return state[static_cast<int64_t>(a) * c.dv + b]; },
        [&](int i, int a, float x) { dkey(i, a) += x; });
    matmul(
        n, n, c.dv, [&](int i, int b) { return xs[i * c.dv + b]; }, [&](int b, int j) { return u[j * u_stride + b]; },
        [&](int i, int j, float x) { sh.c[i * wide + j] = j < i ? -x : 0.0f; });
    each_row([&](int i, int lane) {
      const float sum = row_sum(i, [&](int j) { return sh.c[i * wide + j] * sh.a[i * wide + j]; });
      for (int j = lane; j < n; j += warp) {
        const float d = sh.c[i * wide + j];
        sh.b[i * wide + j] *= d;
        sh.c[i * wide + j] = d * sh.beta[i] * sh.decay[i * wide + j];
      }
      if (lane == 0) sh.dbeta[i] += sum;
    });
    add_flow(sh.b);
    matmul(
        n, c.dk, n, [&](int i, int j) { return sh.c[i * wide + j] + sh.c[j * wide + i]; },
        [&](int j, int a) { return k[j * k_stride + a]; }, [&](int i, int a, float x) { dkey(i, a) += x; });
  }

  // D <- e^{γ_C} D + Σ_i s e^{γ_i} q_i do_iᵀ + Σ_i k_i y_iᵀ
  __device__ void finish_state() {
    const float end = sh.e_gamma[n - 1], s = scale();
    for (int i = threadIdx.x; i < n * c.dv; i += threads) dor[i] *= s * sh.e_gamma[i / c.dv];
    __syncthreads();
    matmul(
        c.dk, c.dv, n, [&](int a, int i) { return q[i * k_stride + a]; },
        [&](int i, int b) { return dor[i * c.dv + b]; },
        [&](int a, int b, float x) {
          float& d = D[static_cast<int64_t>(a) * c.dv + b];
          d = fmaf(end, d, x);
        });
    matmul(
        c.dk, c.dv, n, [&](int a, int i) { return k[i * k_stride + a]; }, [&](int i, int b) { return y[i * c.dv + b]; },
        [&](int a, int b, float x) { D[static_cast<int64_t>(a) * c.dv + b] += x; });
  }

  __device__ void write_gates() {
    if (threadIdx.x == 0) {
      double running = 0;
      for (int i = n - 1; i >= 0; i--) sh.dgamma[i] = running += sh.dgamma[i];
    }
    __syncthreads();
    for (int i = threadIdx.x; i < n; i += threads) {
      const int64_t at = static_cast<int64_t>(row + i) * c.vh + head;
      gr.dg[at] = static_cast<float>(sh.dgamma[i]);
      gr.dbeta[at] = sh.dbeta[i];
    }
    __syncthreads();
  }

  __device__ void run(const Plan& plan) {
    const int64_t size = c.state_size(), at = (static_cast<int64_t>(segment) * c.vh + head) * size;
    const int key_head = head / c.group;
    k_stride = static_cast<int64_t>(c.kh) * c.dk, u_stride = static_cast<int64_t>(c.vh) * c.dv;
    D = gr.work + blockIdx.x * floats_of_block(c.dk, c.dv);
    xs = D + size, y = xs + chunk_rows * c.dv, dor = y + chunk_rows * c.dv, vs = dor + chunk_rows * c.dv;
    Du = vs + chunk_rows * c.dv, part = Du;  // never needed at once
    for (int64_t i = threadIdx.x; i < size; i += threads) D[i] = gr.dstate1 != nullptr ? gr.dstate1[at + i] : 0.0f;
    for (int chunk = plan.first[segment + 1] - 1; chunk >= plan.first[segment]; chunk--) {
      const Chunk ck = plan.chunks[chunk];
      n = ck.hi - ck.lo, row = ck.base + ck.lo;
      q = c.q + (static_cast<int64_t>(row) * c.kh + key_head) * c.dk;
      k = c.k + (static_cast<int64_t>(row) * c.kh + key_head) * c.dk;
      u = c.u + (static_cast<int64_t>(row) * c.vh + head) * c.dv;
      state = c.states + (static_cast<int64_t>(chunk) * c.vh + head) * size;
      load_chunk();
      output_part();
      state_part();
      solve_transposed();
      system_part();
      finish_state();
      write_gates();
    }
    for (int64_t i = threadIdx.x; i < size; i += threads) {
      if (gr.dstate0 != nullptr) gr.dstate0[at + i] = D[i];
    }
    __syncthreads();
  }
};

template <class T>
__global__ void __launch_bounds__(threads) backward_kernel(Call c, Plan plan, Grads<T> gr) {
  extern __shared__ __align__(16) char memory[];
  for (int task = blockIdx.x; task < c.segments * c.vh; task += gridDim.x) {
    const int segment = task / c.vh;
    if (c.starts[segment] == c.starts[segment + 1]) continue;
    HeadBackward<T>{c, gr, *reinterpret_cast<Shared*>(memory), segment, task % c.vh}.run(plan);
  }
}

// dx of a normalised row: ρ (dy - y ⟨y,dy⟩), dy summed over the value heads of a key head. A warp takes one row.
template <class T>
__global__ void __launch_bounds__(threads) keys_kernel(Call c, Grads<T> gr) {
  const int64_t at = (static_cast<int64_t>(blockIdx.x) * threads + threadIdx.x) / warp;
  const int lane = threadIdx.x % warp;
  if (at >= 2 * static_cast<int64_t>(c.rows) * c.kh) return;
  const int64_t t = at / (2 * c.kh);
  const int part = static_cast<int>(at % (2 * c.kh)), head = part % c.kh;
  const bool is_q = part < c.kh;
  const float* y = (is_q ? c.q : c.k) + (t * c.kh + head) * c.dk;
  const float* dy = (is_q ? gr.dq : gr.dk) + (t * c.vh + head * c.group) * c.dk;
  const float r = (is_q ? c.q_r : c.k_r)[t * c.kh + head];
  const auto summed = [&](int a) {
    float sum = 0;
    for (int i = 0; i < c.group; i++) sum += dy[i * c.dk + a];
    return sum;
  };
  float along = 0;
  for (int a = lane; a < c.dk; a += warp) along = fmaf(y[a], summed(a), along);
  along = warp_sum(along);
  T* to = gr.dx + t * gr.dx_stride + part * c.dk;
  for (int a = lane; a < c.dk; a += warp) to[a] = narrow<T>(r * (summed(a) - y[a] * along));
}

template <class T>
void backward_any(Queue& queue, const Call& c, Grads<T> gr) {
  const int64_t most = most_chunks(c.rows, c.segments), keys = static_cast<int64_t>(c.rows) * c.vh * c.dk;
  const int64_t blocks = std::min<int64_t>(static_cast<int64_t>(c.segments) * c.vh, 2 * queue.multiprocessors);
  const int64_t floats = 2 * keys + blocks * floats_of_block(c.dk, c.dv);
  char* scratch = static_cast<char*>(queue.scratch(static_cast<size_t>(floats) * sizeof(float) +
                                                   static_cast<size_t>(most) * sizeof(Chunk) +
                                                   static_cast<size_t>(c.segments + 1) * sizeof(int)));
  gr.dq = reinterpret_cast<float*>(scratch), gr.dk = gr.dq + keys, gr.work = gr.dk + keys;
  const Plan plan{reinterpret_cast<Chunk*>(gr.dq + floats),
                  reinterpret_cast<int*>(reinterpret_cast<Chunk*>(gr.dq + floats) + most)};
  make_plan(queue, c, plan);
  check(cudaFuncSetAttribute(backward_kernel<T>, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(Shared)),
        "cudaFuncSetAttribute");
  backward_kernel<T><<<static_cast<unsigned>(blocks), threads, sizeof(Shared), queue.stream>>>(c, plan, gr);
  const int64_t heads = 2ll * c.rows * c.kh;
  keys_kernel<T><<<static_cast<unsigned>(blocks_for(heads, threads / warp)), threads, 0, queue.stream>>>(c, gr);
}

}  // namespace
}  // namespace delta

void delta_rule_backward(Stream& stream, Tensor dx, Tensor dg, Tensor dbeta, Tensor dstate0, Tensor do_, Tensor dstate1,
                         Tensor x, Tensor g, Tensor beta, const Segments& segments, const DeltaSaved& saved,
                         const DeltaShape& shape) {
  Queue& queue = stream.queue();
  const delta::Call c = delta::call_of(g, beta, {}, {}, segments, {}, saved, shape);
  if (delta::fits_tensor_cores(x, shape) && delta::fits_tensor_cores(dx, shape) &&
      delta::fits_tensor_cores(do_, shape)) {
    delta::backward_128(queue, c, dx, dg, dbeta, dstate0, do_, dstate1, x);
  } else {
    dispatch(x.dtype(), [&]<class T>() {
      delta::backward_any<T>(queue, c,
                             {data_of<T>(x), data_of<T>(do_), data_of<T>(dx), x.row_stride(), do_.row_stride(),
                              dx.row_stride(), dg.as<float>(), dbeta.as<float>(), delta::data_or_null<float>(dstate0),
                              delta::data_or_null<float>(dstate1), nullptr, nullptr, nullptr});
    });
  }
  check_launch(queue, "delta_rule_backward");
}

}  // namespace furlong::cuda
