#include "ops/attention.h"

#include "ops/front.h"

namespace furlong {
namespace {

void check(const char* op, const Tensor& q, const Tensor& k, const Tensor& v, const Segments& segments,
           const AttentionShape& shape) {
  front::expect(q.rank() == 2 && q.dim(1) == shape.heads * shape.head_dim && k.same_shape(v) && k.rows() == q.rows() &&
                    k.dim(1) == shape.kv_heads * shape.head_dim && shape.heads % shape.kv_heads == 0 &&
                    segments.positions.rows() == q.rows() && q.dtype() == k.dtype() && q.dtype() == v.dtype(),
                op, "q (T, heads·D), k and v (T, kv_heads·D), positions (T) wanted", {q, k, v, segments.positions});
}

void check_gate(const char* op, const Tensor& a, const Tensor& o, const Tensor& x, const AttentionShape& shape) {
  front::expect(a.same_shape(o) && a.rank() == 2 && x.rank() == 2 && x.rows() == a.rows() && x.dim(1) == 2 * a.dim(1) &&
                    a.dim(1) == shape.heads * shape.head_dim,
                op, "a and o (T, heads·D), x (T, heads·2·D) wanted", {a, o, x});
}

}  // namespace

void attention(Stream& stream, Tensor o, Tensor lse, Tensor q, Tensor k, Tensor v, const Segments& segments,
               const KvPages& pages, const AttentionShape& shape) {
  check("attention", q, k, v, segments, shape);
  front::expect(o.same_shape(q) && lse.rows() == q.rows() && lse.dim(1) == shape.heads, "attention",
                "o as q, lse (T, heads) wanted", {o, lse, q});
  front::expect(!pages.defined() || (pages.k.rank() == 3 && pages.k.dim(2) == k.dim(1) && pages.k.same_shape(pages.v) &&
                                     pages.table.rows() == segments.count()),
                "attention", "pages (P, page, kv_heads·D) and a table (S, n) wanted", {pages.k, pages.v, pages.table});
  if (front::skip(stream, q)) return;
  front::body(q).attention(stream, o, lse, q, k, v, segments, pages, shape);
}

void attention_backward(Stream& stream, Tensor dq, Tensor dk, Tensor dv, Tensor do_, Tensor q, Tensor k, Tensor v,
                        Tensor o, Tensor lse, const Segments& segments, const AttentionShape& shape) {
  check("attention_backward", q, k, v, segments, shape);
  front::expect(dq.same_shape(q) && dk.same_shape(k) && dv.same_shape(v) && do_.same_shape(q) && o.same_shape(q),
                "attention_backward", "gradients shaped as their values wanted", {dq, dk, dv, do_, q, k, v, o});
  if (front::skip(stream, q)) return;
  front::body(q).attention_backward(stream, dq, dk, dv, do_, q, k, v, o, lse, segments, shape);
}

void attention_gate(Stream& stream, Tensor a, Tensor o, Tensor x, const AttentionShape& shape) {
  check_gate("attention_gate", a, o, x, shape);
  if (front::skip(stream, a)) return;
  front::body(a).attention_gate(stream, a, o, x, shape);
}

void attention_gate_backward(Stream& stream, Tensor do_, Tensor dx, Tensor da, Tensor o, Tensor x,
                             const AttentionShape& shape) {
  check_gate("attention_gate_backward", da, o, x, shape);
  front::expect(do_.same_shape(o) && dx.same_shape(x), "attention_gate_backward", "do as o, dx as x wanted",
                {do_, o, dx, x});
  if (front::skip(stream, da)) return;
  front::body(da).attention_gate_backward(stream, do_, dx, da, o, x, shape);
}

}  // namespace furlong
