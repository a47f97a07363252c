#include <algorithm>
#include <utility>
#include <vector>

#include "ops/cpu/bodies.h"
#include "ops/cpu/delta_chunk.h"
#include "ops/cpu/scratch.h"

namespace furlong::cpu::FURLONG_ISA {
namespace {

// The backward of one value head over the chunks of one segment, last to first. With L_ij = β_i ⟨k_i,k_j⟩ e^{γ_i-γ_j}
// (j < i) the forward solves (I + L) u = β (v - e^γ Sᵀk); its transpose is solved here by back substitution.
template <class S>
struct ChunkBackward {
  int64_t dk, dv, n;
  const S *q, *k;  // rows at this key head, k_stride apart
  int64_t k_stride;
  const S* u;
  int64_t u_stride;
  const S* state;           // entering the chunk
  const S *v, *grad;        // (n,dv) copies
  const double* gamma;      // (n)
  const S* beta;            // (n)
  S* D;                     // gradient of the state leaving the chunk; becomes that of the state entering it
  S *dq, *dk_sum, *dvalue;  // (n,dk) +=, (n,dk) +=, (n,dv) =
  double* dgamma;           // (n) = ; double: it is a sum of differences
  S* dbeta;                 // (n) =

  // Working memory of the thread: (n,n) each; xs, hk, y (n,dv); Du (n,dk); part (n,dk) or (n,dv).
  S *decay{}, *e{}, *gk{}, *qk{}, *L{}, *dL{}, *xs{}, *hk{}, *y{}, *Du{}, *part{};

  void run() {
    constexpr int64_t c = delta_chunk;
    S* at = scratch<S, Scratch::delta_chunk_backward>(c * (6 * c + 3 * dv + dk + std::max(dk, dv)));
    for (S** square : {&decay, &e, &gk, &qk, &L, &dL}) *square = std::exchange(at, at + c * c);
    for (S** values : {&xs, &hk, &y}) *values = std::exchange(at, at + c * dv);
    Du = std::exchange(at, at + c * dk);
    part = at;
    std::fill_n(decay, n * n, S(0));
    for (int64_t i = 0; i < n; i++) {
      for (int64_t j = 0; j <= i; j++) decay[i * n + j] = exp_fast(static_cast<S>(gamma[i] - gamma[j]));
    }
    std::fill_n(dgamma, n, 0.0);
    std::fill_n(dbeta, n, S(0));
    output_part();
    state_part();
    solve_transposed();
    system_part();
    finish_state();
  }

 private:
  S scale() const { return S(1) / std::sqrt(static_cast<S>(dk)); }

  // From o: dq, the part of dk through ⟨q,k⟩, and du = Pᵀ do (into xs).
  void output_part() {
    const S s = scale();
    gemm_nt(n, n, dv, grad, dv, u, u_stride, e, n);
    gemm_nt(n, n, dk, q, k_stride, k, k_stride, qk, n);
    for (int64_t i = 0; i < n * n; i++) {
      e[i] *= s * decay[i];
      const S product = qk[i];
      const S flow = e[i] * product;  // dP ⊙ P, the gradient of γ_i - γ_j
      dgamma[i / n] += flow;
      dgamma[i % n] -= flow;
      qk[i] = s * decay[i] * product;
    }
    gemm_nn(n, dk, n, e, n, 1, k, k_stride, dq, dk, true);
    gemm_nn(n, dk, n, e, 1, n, q, k_stride, dk_sum, dk, true);
    gemm_nn(n, dv, n, qk, 1, n, grad, dv, xs, dv);
    // Through the entering state: S do scaled by e^{γ_i}.
    gemm_nt(n, dk, dv, grad, dv, state, dv, part, dk);
    for (int64_t i = 0; i < n; i++) {
      const S factor = s * exp_fast(static_cast<S>(gamma[i]));
      S* p = part + i * dk;
      for (int64_t c = 0; c < dk; c++) p[c] *= factor;
      dgamma[i] += dot(p, q + i * k_stride, dk);
      for (int64_t c = 0; c < dk; c++) dq[i * dk + c] += p[c];
    }
  }

  // From the state leaving the chunk: e^{γ_C-γ_j} k_j u_jᵀ and e^{γ_C} S.
  void state_part() {
    gemm_nt(n, dk, dv, u, u_stride, D, dv, Du, dk);
    gemm_nn(n, dv, dk, k, k_stride, 1, D, dv, part, dv);
    for (int64_t j = 0; j < n; j++) {
      const S factor = exp_fast(static_cast<S>(gamma[n - 1] - gamma[j]));
      S* d = Du + j * dk;
      for (int64_t c = 0; c < dk; c++) d[c] *= factor;
      const S flow = dot(d, k + j * k_stride, dk);
      dgamma[n - 1] += flow;
      dgamma[j] -= flow;
      for (int64_t c = 0; c < dk; c++) dk_sum[j * dk + c] += d[c];
      for (int64_t c = 0; c < dv; c++) xs[j * dv + c] += factor * part[j * dv + c];
    }
    dgamma[n - 1] += exp_fast(static_cast<S>(gamma[n - 1])) * dot(state, D, dk * dv);
  }

  // xs <- (I + L)⁻ᵀ xs
  void solve_transposed() {
    gemm_nt(n, n, dk, k, k_stride, k, k_stride, gk, n);
    for (int64_t i = 0; i < n; i++) {
      for (int64_t j = 0; j < n; j++) {
        const auto at = i * n + j;
        gk[at] *= decay[at];
        L[at] = j < i ? beta[i] * gk[at] : S(0);
      }
    }
    for (int64_t i = n - 1; i >= 0; i--) {
      const S* x = xs + i * dv;
      for (int64_t j = 0; j < i; j++) {
        const S l = L[i * n + j];
        S* row = xs + j * dv;
        for (int64_t c = 0; c < dv; c++) row[c] = mul_add(-l, x[c], row[c]);
      }
    }
  }

  // From the system (I + L) u = β (v - e^γ Sᵀk).
  void system_part() {
    gemm_nn(n, dv, dk, k, k_stride, 1, state, dv, hk, dv);
    for (int64_t i = 0; i < n; i++) {
      const S* x = xs + i * dv;
      const S* h = hk + i * dv;
      const S decay_i = exp_fast(static_cast<S>(gamma[i]));
      S* yi = y + i * dv;
      for (int64_t c = 0; c < dv; c++) {
        dvalue[i * dv + c] = beta[i] * x[c];
        yi[c] = -beta[i] * decay_i * x[c];
      }
      dbeta[i] += dot(x, v + i * dv, dv) - decay_i * dot(x, h, dv);
      dgamma[i] += dot(yi, h, dv);
    }
    gemm_nt(n, dk, dv, y, dv, state, dv, dk_sum, dk, true);
    gemm_nt(n, n, dv, xs, dv, u, u_stride, dL, n);
    for (int64_t i = 0; i < n; i++) {
      for (int64_t j = 0; j < n; j++) {
        const auto at = i * n + j;
        const S d = j < i ? -dL[at] : S(0);
        dbeta[i] += d * gk[at];
        const S flow = d * L[at];
        dgamma[i] += flow;
        dgamma[j] -= flow;
        dL[at] = d * beta[i] * decay[at];
      }
    }
    gemm_nn(n, dk, n, dL, n, 1, k, k_stride, dk_sum, dk, true);
    gemm_nn(n, dk, n, dL, 1, n, k, k_stride, dk_sum, dk, true);
  }

  // D <- e^{γ_C} D + Σ_i s e^{γ_i} q_i do_iᵀ + Σ_i k_i y_iᵀ
  void finish_state() {
    const S end = exp_fast(static_cast<S>(gamma[n - 1]));
    for (int64_t i = 0; i < dk * dv; i++) D[i] *= end;
    for (int64_t i = 0; i < n; i++) {
      const S factor = scale() * exp_fast(static_cast<S>(gamma[i]));
      for (int64_t c = 0; c < dv; c++) part[i * dv + c] = factor * grad[i * dv + c];
    }
    gemm_nn(dk, dv, n, q, 1, k_stride, part, dv, D, dv, true);
    gemm_nn(dk, dv, n, k, 1, k_stride, y, dv, D, dv, true);
  }
};

// dx of a normalised row: ρ (dy - y ⟨y,dy⟩)
template <class T, class S>
void l2_backward(T* dx, const S* dy, const S* y, S r, int64_t n) {
  const S along = dot(y, dy, n);
  for (int64_t i = 0; i < n; i++) dx[i] = narrow<T>(r * (dy[i] - y[i] * along));
}

template <class T>
struct SegmentBackward {
  using S = Acc<T>;
  const Tensor &dx, &dg, &dbeta, &dstate0, &do_, &dstate1, &x, &beta;
  const DeltaSaved& saved;
  const DeltaShape& shape;
  int64_t segment, start, rows, first_chunk;

  void run(int64_t key_head) {
    const int64_t dk = shape.key_dim, group = shape.value_heads / shape.key_heads;
    S *dq = scratch<S, Scratch::delta_rows_backward>(2 * rows * dk), *dkey = dq + rows * dk;
    std::fill_n(dq, 2 * rows * dk, S(0));
    for (int64_t i = 0; i < group; i++) value_head(key_head, key_head * group + i, dq, dkey);
    for (int64_t t = 0; t < rows; t++) {
      const int64_t at = (start + t) * shape.key_heads + key_head;
      T* out = dx.as<T>() + (start + t) * dx.row_stride();
      l2_backward(out + key_head * dk, dq + t * dk, saved.q.as<S>() + at * dk, saved.q_r.as<S>()[at], dk);
      l2_backward(out + (shape.key_heads + key_head) * dk, dkey + t * dk, saved.k.as<S>() + at * dk,
                  saved.k_r.as<S>()[at], dk);
    }
  }

 private:
  void value_head(int64_t kh, int64_t vh, S* dq, S* dkey) {
    const int64_t dk = shape.key_dim, dv = shape.value_dim, heads = shape.value_heads, size = dk * dv;
    S *D = scratch<S, Scratch::delta_head_backward>(size + 3 * delta_chunk * dv), *values = D + size,
      *grads = values + delta_chunk * dv, *dvalue = grads + delta_chunk * dv;
    if (dstate1.defined()) {
      std::copy_n(dstate1.as<S>() + (segment * heads + vh) * size, size, D);
    } else {
      std::fill_n(D, size, S(0));
    }
    const int64_t v_at = 2 * shape.key_heads * dk + vh * dv;
    double gamma[delta_chunk], dgamma[delta_chunk];
    S b[delta_chunk], db[delta_chunk];
    for (int64_t c = (rows + delta_chunk - 1) / delta_chunk - 1; c >= 0; c--) {
      const int64_t t0 = c * delta_chunk, n = std::min(delta_chunk, rows - t0), row = start + t0;
      for (int64_t i = 0; i < n; i++) {
        gamma[i] = saved.gamma.as<double>()[(row + i) * heads + vh];
        b[i] = beta.as<S>()[(row + i) * heads + vh];
        for (int64_t j = 0; j < dv; j++) {
          values[i * dv + j] = widen(x.as<T>()[(row + i) * x.row_stride() + v_at + j]);
          grads[i * dv + j] = widen(do_.as<T>()[(row + i) * do_.row_stride() + vh * dv + j]);
        }
      }
      ChunkBackward<S>{dk,
                       dv,
                       n,
                       saved.q.as<S>() + (row * shape.key_heads + kh) * dk,
                       saved.k.as<S>() + (row * shape.key_heads + kh) * dk,
                       shape.key_heads * dk,
                       saved.u.as<S>() + (row * heads + vh) * dv,
                       heads * dv,
                       saved.states.as<S>() + ((first_chunk + c) * heads + vh) * size,
                       values,
                       grads,
                       gamma,
                       b,
                       D,
                       dq + t0 * dk,
                       dkey + t0 * dk,
                       dvalue,
                       dgamma,
                       db}
          .run();
      double running = 0;
      for (int64_t i = n - 1; i >= 0; i--) {
        running += dgamma[i];
        dg.as<S>()[(row + i) * heads + vh] = static_cast<S>(running);
        dbeta.as<S>()[(row + i) * heads + vh] = db[i];
        T* out = dx.as<T>() + (row + i) * dx.row_stride() + v_at;
        for (int64_t j = 0; j < dv; j++) out[j] = narrow<T>(dvalue[i * dv + j]);
      }
    }
    if (dstate0.defined()) std::copy_n(D, size, dstate0.as<S>() + (segment * heads + vh) * size);
  }
};

}  // namespace

void delta_rule_backward(Stream& stream, Tensor dx, Tensor dg, Tensor dbeta, Tensor dstate0, Tensor do_, Tensor dstate1,
                         Tensor x, Tensor, Tensor beta, const Segments& segments, const DeltaSaved& saved,
                         const DeltaShape& shape) {
  dispatch(x.dtype(), [&]<class T>() {
    const int32_t* starts = segments.starts.as<int32_t>();
    std::vector<int64_t> first_chunk(static_cast<size_t>(segments.count()) + 1, 0);
    for (int64_t s = 0; s < segments.count(); s++) {
      first_chunk[static_cast<size_t>(s) + 1] =
          first_chunk[static_cast<size_t>(s)] + (starts[s + 1] - starts[s] + delta_chunk - 1) / delta_chunk;
    }
    stream.threads().parallel_uneven(segments.count() * shape.key_heads, [&](int64_t task) {
      const int64_t s = task / shape.key_heads;
      if (starts[s] == starts[s + 1]) return;
      SegmentBackward<T>{dx,
                         dg,
                         dbeta,
                         dstate0,
                         do_,
                         dstate1,
                         x,
                         beta,
                         saved,
                         shape,
                         s,
                         starts[s],
                         starts[s + 1] - starts[s],
                         first_chunk[static_cast<size_t>(s)]}
          .run(task % shape.key_heads);
    });
  });
}

}  // namespace furlong::cpu::FURLONG_ISA
