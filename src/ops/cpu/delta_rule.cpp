#include <algorithm>
#include <vector>

#include "ops/cpu/bodies.h"
#include "ops/cpu/conv_rows.h"
#include "ops/cpu/delta_chunk.h"
#include "ops/cpu/norm_rows.h"
#include "ops/cpu/touch.h"

namespace furlong::cpu::FURLONG_ISA {
namespace {

constexpr double l2_eps = 1e-6;

// y = x / sqrt(Σx² + eps); returns the inverse root.
template <class T, class S>
S l2_normalise(S* y, const T* x, int64_t n) {
  const S r = S(1) / std::sqrt(dot(x, x, n) + S(l2_eps));
  for (int64_t i = 0; i < n; i++) y[i] = widen(x[i]) * r;
  return r;
}

template <class S>
S softplus(S x) {
  return x > S(20) ? x : std::log1p(std::exp(x));
}

// Of the rows' keys, then of their queries: the rows, their products with the state, with the chunk's keys, those
// decayed, and sums over the chunk's corrections.
template <class S>
struct DeltaWork {
  S *both = nullptr, *products = nullptr, *raw = nullptr, *decayed = nullptr, *sum = nullptr;
};

// A key head over one segment, chunk by chunk, and its value heads.
template <class T>
struct Head {
  using S = Acc<T>;
  const DeltaShape& shape;
  const DeltaSaved& saved;
  const Tensor &x, &g, &beta, &o;
  int64_t key_head;
  DeltaWork<S> work{};

  // The batch rows [t, t + n) as a run.
  ChunkRun<S> run(int64_t value_head, int64_t t, int64_t n) const {
    return {saved.k.as<S>() + (t * shape.key_heads + key_head) * shape.key_dim,
            saved.u.as<S>() + (t * shape.value_heads + value_head) * shape.value_dim,
            saved.gamma.as<double>() + t * shape.value_heads + value_head,
            shape.key_heads * shape.key_dim,
            shape.value_heads * shape.value_dim,
            shape.value_heads,
            n};
  }

  // Products of the rows [t, t + n) of the batch, which lie in one chunk after the rows of `before`, with the keys of
  // both. state: what will be read next.
  void keys(int64_t t, int64_t n, const ChunkRows<S>& before, const S* state) {
    const int64_t dk = shape.key_dim, all = before.rows() + n, stride = shape.key_heads * dk;
    const S *k = saved.k.as<S>() + (t * shape.key_heads + key_head) * dk,
            *q = saved.q.as<S>() + (t * shape.key_heads + key_head) * dk;
    work.both = scratch<S, Scratch::delta_rows>(2 * n * dk);
    work.raw = scratch<S, Scratch::delta_raw>(2 * n * all);
    for (int64_t i = 0; i < n; i++) {
      std::copy_n(k + i * stride, dk, work.both + i * dk);
      std::copy_n(q + i * stride, dk, work.both + (n + i) * dk);
    }
    int64_t column = 0;
    const RowsNt<S, S> both(2 * n, dk, work.both, dk);
    const auto multiply = [&](int64_t rows, const S* keys_, int64_t keys_stride) {
      both.times(rows, keys_, keys_stride, work.raw + column, all, state + column * dk);
      column += rows;
    };
    for (int r = 0; r < before.count; r++) {
      const auto& part = before.runs[static_cast<size_t>(r)];
      multiply(part.rows, part.k, part.k_stride);
    }
    multiply(n, k, stride);
  }

  // Solves those rows for one value head, from the state entering the chunk; `keys` came first.
  void solve(int64_t value_head, int64_t t, int64_t n, const S* state, const ChunkRows<S>& before) {
    const int64_t dk = shape.key_dim, dv = shape.value_dim, earlier = before.rows(), all = earlier + n;
    work.products = scratch<S, Scratch::delta_products>(2 * n * dv);
    work.decayed = scratch<S, Scratch::delta_decayed>(2 * n * all);
    work.sum = scratch<S, Scratch::delta_sums>(2 * n * dv);
    gemm_nn(2 * n, dv, dk, work.both, dk, 1, state, dv, work.products, dv);
    decays(value_head, t, n, before);
    std::fill_n(work.sum, 2 * n * dv, S(0));
    int64_t column = 0;
    for (int r = 0; r < before.count; r++) {
      const auto& part = before.runs[static_cast<size_t>(r)];
      gemm_nn(2 * n, dv, part.rows, work.decayed + column, all, 1, part.u, part.u_stride, work.sum, dv, true);
      column += part.rows;
    }
    corrections(value_head, t, n, earlier, all);
    const ChunkRun<S> own = run(value_head, t, n);
    gemm_nn(n, dv, n, work.decayed + n * all + earlier, all, 1, own.u, own.u_stride, work.sum + n * dv, dv, true);
    outputs(value_head, t, n);
  }

 private:
  // γ of the rows, and the products times e^{γ_i-γ_j}; entries above the diagonal become zero.
  void decays(int64_t value_head, int64_t t, int64_t n, const ChunkRows<S>& before) {
    double* gamma = saved.gamma.as<double>() + t * shape.value_heads + value_head;
    double last = 0;
    if (before.count > 0) {
      const auto& run = before.runs[static_cast<size_t>(before.count - 1)];
      last = run.gamma[(run.rows - 1) * run.gamma_stride];
    }
    for (int64_t i = 0; i < n; i++) {
      last += g.as<S>()[(t + i) * shape.value_heads + value_head];
      gamma[i * shape.value_heads] = last;
    }
    const int64_t earlier = before.rows(), all = earlier + n;
    double chunk_gamma[delta_chunk];
    int64_t j = 0;
    for (int r = 0; r < before.count; r++) {
      const auto& run = before.runs[static_cast<size_t>(r)];
      for (int64_t i = 0; i < run.rows; i++) chunk_gamma[j++] = run.gamma[i * run.gamma_stride];
    }
    for (int64_t i = 0; i < n; i++) chunk_gamma[j++] = gamma[i * shape.value_heads];
    for (int64_t i = 0; i < n; i++) {
      const S *raw_k = work.raw + i * all, *raw_q = raw_k + n * all;
      S *a = work.decayed + i * all, *b = a + n * all;
      const double own = chunk_gamma[earlier + i];
      for (int64_t c = 0; c <= earlier + i; c++) {
        const S decay = exp_fast(static_cast<S>(own - chunk_gamma[c]));
        a[c] = raw_k[c] * decay;
        b[c] = raw_q[c] * decay;
      }
      for (int64_t c = earlier + i + 1; c < all; c++) b[c] = 0;
    }
  }

  // u_i = β_i (v_i - e^{γ_i} Sᵀk_i - Σ_{j<i} e^{γ_i-γ_j} ⟨k_i,k_j⟩ u_j), row after row; the sums have begun.
  void corrections(int64_t value_head, int64_t t, int64_t n, int64_t earlier, int64_t all) {
    const int64_t dv = shape.value_dim;
    const int64_t v_at = 2 * shape.key_heads * shape.key_dim + value_head * dv;
    const ChunkRun<S> own = run(value_head, t, n);
    for (int64_t i = 0; i < n; i++) {
      S* sum = work.sum + i * dv;
      if (i > 0) {
        gemm_nn(1, dv, i, work.decayed + i * all + earlier, all, 1, own.u, own.u_stride, sum, dv, true);
      }
      const int64_t at = (t + i) * shape.value_heads + value_head;
      const S b = beta.as<S>()[at], decay = exp_fast(static_cast<S>(saved.gamma.as<double>()[at]));
      S* u = saved.u.as<S>() + at * dv;
      const T* v = x.as<T>() + (t + i) * x.row_stride() + v_at;
      const S* product = work.products + i * dv;
      for (int64_t c = 0; c < dv; c++) u[c] = b * ((widen(v[c]) - decay * product[c]) - sum[c]);
    }
  }

  // o_i = (e^{γ_i} Sᵀq_i + Σ_{j≤i} e^{γ_i-γ_j} ⟨q_i,k_j⟩ u_j) / sqrt(Dk)
  void outputs(int64_t value_head, int64_t t, int64_t n) {
    const int64_t dv = shape.value_dim;
    const S scale = S(1) / std::sqrt(static_cast<S>(shape.key_dim));
    for (int64_t i = 0; i < n; i++) {
      const S decay = exp_fast(static_cast<S>(saved.gamma.as<double>()[(t + i) * shape.value_heads + value_head]));
      T* out = o.as<T>() + (t + i) * o.row_stride() + value_head * dv;
      const S *product = work.products + (n + i) * dv, *sum = work.sum + (n + i) * dv;
      for (int64_t c = 0; c < dv; c++) out[c] = narrow<T>(scale * (decay * product[c] + sum[c]));
    }
  }
};

// What delta_gates takes.
struct Gates {
  const Tensor &a, &b, &A_log, &dt_bias;
};

// Of the rows [begin, end) and the heads [first, last).
template <class T>
void gates_of(const Tensor& g, const Tensor& beta, const Gates& from, int64_t begin, int64_t end, int64_t first,
              int64_t last) {
  using S = Acc<T>;
  const int64_t heads = g.dim(1);
  for (int64_t h = first; h < last; h++) {
    const S rate = -std::exp(from.A_log.as<S>()[h]), bias = widen(from.dt_bias.as<T>()[h]);
    for (int64_t t = begin; t < end; t++) {
      g.as<S>()[t * heads + h] = rate * softplus<S>(widen(from.a.as<T>()[t * from.a.row_stride() + h]) + bias);
      beta.as<S>()[t * heads + h] = sigmoid<S>(widen(from.b.as<T>()[t * from.b.row_stride() + h]));
    }
  }
}

// The batch's segments at one key head and its value heads.
template <class T>
class Rule {
 public:
  using S = Acc<T>;
  Rule(const Tensor& o, const Tensor& x, const Tensor& g, const Tensor& beta, const Tensor& state0,
       const Tensor& state1, const Segments& segments, const DeltaSlots& slots, const DeltaSaved& saved,
       const DeltaShape& shape, const Gates* gates)
      : o_(o),
        x_(x),
        g_(g),
        beta_(beta),
        state0_(state0),
        state1_(state1),
        segments_(segments),
        slots_(slots),
        saved_(saved),
        shape_(shape),
        gates_(gates),
        starts_(segments.starts.as<int32_t>()),
        positions_(segments.positions.as<int32_t>()),
        group_(shape.value_heads / shape.key_heads),
        first_chunk_(static_cast<size_t>(segments.count()) + 1, 0) {
    for (int64_t s = 0; s < segments.count(); s++) {
      const int64_t chunks = starts_[s] == starts_[s + 1] ? 0
                                                          : positions_[starts_[s + 1] - 1] / delta_chunk -
                                                                positions_[starts_[s]] / delta_chunk + 1;
      first_chunk_[static_cast<size_t>(s) + 1] = first_chunk_[static_cast<size_t>(s)] + chunks;
    }
  }

  // Where sequences decode, a task is one of them with all its heads. Threads begin with sequences that follow each
  // other, because small results of several share a line.
  bool by_sequence(const Stream& stream) const {
    const int64_t count = segments_.count();
    return slots_.defined() && x_.rows() <= 4 * count && count >= 2 * stream.threads().size();
  }
  void run(Stream& stream) const {
    if (by_sequence(stream)) {
      stream.threads().parallel_in_order(segments_.count(), [&](int64_t s) { sequence(s); });
    } else {
      stream.threads().parallel_uneven(segments_.count() * shape_.key_heads, [&](int64_t task) {
        segment(task / shape_.key_heads, task % shape_.key_heads);
      });
    }
  }
  // All heads of a segment, whose rows of the ring come straight from memory first.
  void sequence(int64_t s) const {
    if (starts_[s] == starts_[s + 1]) return;
    touch_ring(s);
    for (int64_t h = 0; h < shape_.key_heads; h++) segment(s, h);
  }

 private:
  int64_t slot(int64_t s) const { return slots_.slots.as<int32_t>()[s]; }
  bool speculative(int64_t s) const { return slots_.speculative.as<int32_t>()[s] != 0; }
  int64_t state_size() const { return shape_.key_dim * shape_.value_dim; }
  S* state_at(const Tensor& states, int64_t entry, int64_t vh) const {
    return states.as<S>() + (entry * shape_.value_heads + vh) * state_size();
  }

  // The chunk's rows of the ring, whole: a head's own ones lie apart.
  void touch_ring(int64_t s) const {
    const int64_t p = positions_[starts_[s]], ring = slots_.ring_k.dim(1);
    for (const Tensor* t : {&slots_.ring_k, &slots_.ring_u}) {
      const Tensor rows = t->at(slot(s));
      for (int64_t q = p / delta_chunk * delta_chunk; q < p; q++) {
        touch(rows.as<S>() + q % ring * rows.row_stride(), rows.row_stride() * static_cast<int64_t>(sizeof(S)));
      }
    }
  }

  void normalise(int64_t t, int64_t kh) const {
    const int64_t heads = shape_.key_heads, dk = shape_.key_dim, at = t * heads + kh;
    const T* row = x_.as<T>() + t * x_.row_stride();
    saved_.q_r.as<S>()[at] = l2_normalise(saved_.q.as<S>() + at * dk, row + kh * dk, dk);
    saved_.k_r.as<S>()[at] = l2_normalise(saved_.k.as<S>() + at * dk, row + (heads + kh) * dk, dk);
  }

  void segment(int64_t s, int64_t kh) const {
    const int64_t begin_row = starts_[s], end_row = starts_[s + 1];
    if (begin_row == end_row) return;
    for (int64_t t = begin_row; t < end_row; t++) normalise(t, kh);
    if (gates_ != nullptr) gates_of<T>(g_, beta_, *gates_, begin_row, end_row, kh * group_, (kh + 1) * group_);
    const bool keep = slots_.defined() && !speculative(s);
    Head<T> head{shape_, saved_, x_, g_, beta_, o_, kh};
    // The states, one value head's after the other: a slot's in place, unless a draft may yet be refused, or copies.
    S* states = slots_.defined() ? state_at(slots_.state, slot(s), kh * group_) : nullptr;
    bool copies = false;
    const auto copy_states = [&](const S* from) {
      states = scratch<S, Scratch::delta_states>(group_ * state_size());
      if (from != nullptr) {
        std::copy_n(from, group_ * state_size(), states);
      } else {
        std::fill_n(states, group_ * state_size(), S(0));
      }
      copies = true;
    };
    if (!slots_.defined()) copy_states(state0_.defined() ? state_at(state0_, s, kh * group_) : nullptr);
    int64_t chunk = first_chunk_[static_cast<size_t>(s)];
    for (int64_t t = begin_row; t < end_row; chunk++) {
      const int64_t p = positions_[t], begin = p / delta_chunk * delta_chunk;
      const int64_t n = std::min<int64_t>(end_row - t, begin + delta_chunk - p);
      // Of a chunk that ends the segment nobody wants the state, unless it is asked for or the slot's own moves on.
      const bool last = t + n == end_row, completes = p + n == begin + delta_chunk;
      const bool advances = last ? state1_.defined() || (completes && keep) : completes;
      if (advances && !copies && !keep) copy_states(states);
      for (int64_t i = 0; i < group_; i++) {
        const int64_t vh = kh * group_ + i;
        S* mine = states + i * state_size();
        // One row meets its state in columns as wide as short vectors allow, an order that processors do not foresee.
        if (vector_bytes < 64 && slots_.defined() && n == 1) {
          touch_in_quarters(mine, state_size() * static_cast<int64_t>(sizeof(S)));
        }
        if (saved_.states.defined()) std::copy_n(mine, state_size(), state_at(saved_.states, chunk, vh));
        ChunkRows<S> rows;
        if (slots_.defined() && t == begin_row) push_ring(rows, slots_, slot(s), kh, vh, begin, p);
        if (i == 0) head.keys(t, n, rows, mine);
        head.solve(vh, t, n, mine, rows);
        if (!advances) continue;
        rows.push(head.run(vh, t, n));
        advance_state(mine, shape_.key_dim, shape_.value_dim, rows);
      }
      t += n;
    }
    if (state1_.defined()) std::copy_n(states, group_ * state_size(), state_at(state1_, s, kh * group_));
    if (slots_.defined()) write_ring(s, kh);
  }

  // Puts the rows that are still needed into the ring.
  void write_ring(int64_t s, int64_t kh) const {
    const int64_t ring = slots_.ring_k.dim(1), heads = shape_.value_heads, dk = shape_.key_dim, dv = shape_.value_dim;
    const Tensor ks = slots_.ring_k.at(slot(s)), us = slots_.ring_u.at(slot(s)), gs = slots_.ring_g.at(slot(s));
    const int64_t end = positions_[starts_[s + 1] - 1] + 1, first = kh * group_;
    for (int64_t t = starts_[s]; t < starts_[s + 1]; t++) {
      const int64_t p = positions_[t], entry = p % ring;
      if (!speculative(s) && p < end / delta_chunk * delta_chunk) continue;
      std::copy_n(saved_.k.as<S>() + (t * shape_.key_heads + kh) * dk, dk,
                  ks.as<S>() + entry * ks.row_stride() + kh * dk);
      std::copy_n(saved_.u.as<S>() + (t * heads + first) * dv, group_ * dv,
                  us.as<S>() + entry * us.row_stride() + first * dv);
      std::copy_n(saved_.gamma.as<double>() + t * heads + first, group_,
                  gs.as<double>() + entry * gs.row_stride() + first);
    }
  }

  const Tensor &o_, &x_, &g_, &beta_, &state0_, &state1_;
  const Segments& segments_;
  const DeltaSlots& slots_;
  const DeltaSaved& saved_;
  const DeltaShape& shape_;
  const Gates* gates_;
  const int32_t *starts_, *positions_;
  int64_t group_;  // value heads of a key head
  std::vector<int64_t> first_chunk_;
};

}  // namespace

void delta_gates(Stream&, Tensor g, Tensor beta, Tensor a, Tensor b, Tensor A_log, Tensor dt_bias) {
  dispatch(a.dtype(), [&]<class T>() { gates_of<T>(g, beta, {a, b, A_log, dt_bias}, 0, g.rows(), 0, g.dim(1)); });
}

void delta_gates_backward(Stream&, Tensor da, Tensor db, Tensor dA_log, Tensor ddt_bias, Tensor dg, Tensor dbeta,
                          Tensor g, Tensor beta, Tensor a, Tensor A_log, Tensor dt_bias) {
  dispatch(a.dtype(), [&]<class T>() {
    using S = Acc<T>;
    const int64_t heads = g.dim(1);
    for (int64_t h = 0; h < heads; h++) {
      const S rate = -std::exp(A_log.as<S>()[h]), bias = widen(dt_bias.as<T>()[h]);
      for (int64_t t = 0; t < g.rows(); t++) {
        const int64_t i = t * heads + h;
        const S grad = dg.as<S>()[i], p = beta.as<S>()[i];
        const S d = rate * grad * sigmoid<S>(widen(a.as<T>()[t * a.row_stride() + h]) + bias);
        da.as<T>()[t * da.row_stride() + h] = narrow<T>(d);
        db.as<T>()[t * db.row_stride() + h] = narrow<T>(dbeta.as<S>()[i] * p * (S(1) - p));
        ddt_bias.as<S>()[h] += d;
        dA_log.as<S>()[h] += grad * g.as<S>()[i];
      }
    }
  });
}

void delta_rule(Stream& stream, Tensor o, Tensor x, Tensor g, Tensor beta, Tensor state0, Tensor state1,
                const Segments& segments, const DeltaSlots& slots, const DeltaSaved& saved, const DeltaShape& shape) {
  dispatch(x.dtype(), [&]<class T>() {
    Rule<T>(o, x, g, beta, state0, state1, segments, slots, saved, shape, nullptr).run(stream);
  });
}

void delta_core(Stream& stream, Tensor y, const DeltaCore& core, const Segments& segments, const DeltaSlots& slots,
                const DeltaSaved& saved, const DeltaShape& shape) {
  const int64_t heads = y.rows() * shape.value_heads;
  const auto by_head = [&](const Tensor& t) { return t.reshape({heads, shape.value_dim}); };
  const Gates gates{core.a, core.b, core.A_log, core.dt_bias};
  const Tensor none;
  dispatch(core.mixed.dtype(), [&]<class T>() {
    const Rule<T> rule(core.o, core.mixed, core.g, core.beta, none, none, segments, slots, saved, shape, &gates);
    if (!rule.by_sequence(stream)) {
      FURLONG_ISA::conv_silu(stream, core.mixed, core.qkv, core.conv, segments, slots);
      rule.run(stream);
      FURLONG_ISA::gated_rms_norm(stream, by_head(y), core.o_r, by_head(core.o), by_head(core.z), core.norm, core.eps);
      return;
    }
    // A sequence from its inputs to what the layer's last product takes: its rows stay with one core. The taps
    // lie in this thread's scratch memory, which no task asks for.
    const ConvRows<T> conv(core.mixed, core.qkv, core.conv, segments, slots);
    const int64_t channels = core.qkv.dim(1);
    const Acc<T>* taps = by_tap<T>(core.conv, 0, channels);
    const auto scale = widened<Acc<T>>(core.norm, 0);
    const int32_t* starts = segments.starts.as<int32_t>();
    stream.threads().parallel_in_order(segments.count(), [&](int64_t s) {
      conv.run(starts[s], starts[s + 1], 0, channels, taps);
      conv.keep(s, s + 1, 0, channels);
      rule.sequence(s);
      for (int64_t t = starts[s]; t < starts[s + 1]; t++) {
        for (int64_t h = 0; h < shape.value_heads; h++) {
          const int64_t at = h * shape.value_dim;
          core.o_r.as<Acc<T>>()[t * shape.value_heads + h] =
              gated_norm_row(y.as<T>() + t * y.row_stride() + at, core.o.as<T>() + t * core.o.row_stride() + at,
                             core.z.as<T>() + t * core.z.row_stride() + at, scale.data(), shape.value_dim, core.eps);
        }
      }
    });
  });
}

void delta_commit(Stream& stream, const std::vector<DeltaSlots>& layers, Tensor slots, Tensor before, Tensor after,
                  const DeltaShape& shape) {
  dispatch(layers.front().state.dtype(), [&]<class S>() {
    if constexpr (std::is_same_v<S, bf16>) {
      CHECK(false, "a recurrent state is never bf16");
    } else {
      const int64_t tasks = before.rows() * shape.value_heads;
      stream.threads().parallel_uneven(std::ssize(layers) * tasks, [&](int64_t task) {
        const DeltaSlots& layer = layers[static_cast<size_t>(task / tasks)];
        const int64_t s = task % tasks / shape.value_heads, vh = task % shape.value_heads;
        const int64_t from = before.as<int32_t>()[s] / delta_chunk, to = after.as<int32_t>()[s] / delta_chunk;
        if (from == to) return;
        CHECK(to == from + 1, "a commit from {} to {} completes more than one chunk", before.as<int32_t>()[s],
              after.as<int32_t>()[s]);
        const int64_t slot = slots.as<int32_t>()[s];
        ChunkRows<S> rows;
        push_ring(rows, layer, slot, vh / (shape.value_heads / shape.key_heads), vh, from * delta_chunk,
                  to * delta_chunk);
        advance_state(layer.state.as<S>() + (slot * shape.value_heads + vh) * shape.key_dim * shape.value_dim,
                      shape.key_dim, shape.value_dim, rows);
      });
    }
  });
}

}  // namespace furlong::cpu::FURLONG_ISA
