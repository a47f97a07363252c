#include "model/heads.h"

namespace furlong {
namespace {

// Of n heads, those of rank i of `ranks`: a block of them, or one that several ranks have.
Range shared_block(int64_t n, int64_t i, int64_t ranks) {
  if (ranks <= n) return block_of(n, i, ranks);
  const int64_t head = i * n / ranks;
  return {head, head + 1};
}

Range scaled(const Range& r, int64_t by, int64_t offset = 0) { return {offset + r.begin * by, offset + r.end * by}; }

// What `columns` says of the mixer heads of each context parallel rank beside this one.
template <class F>
RankColumns by_rank(const ModelConfig& c, MeshRank place, F&& columns) {
  RankColumns out;
  for (place.context = 0; place.context < place.sizes.context; place.context++) {
    out.push_back(columns(mixer_heads(c, place)));
  }
  return out;
}

}  // namespace

HeadRanges projected_heads(const ModelConfig& c, const MeshRank& m) {
  const int64_t per_key = c.linear_num_value_heads / c.linear_num_key_heads;
  const Range key = block_of(c.linear_num_key_heads, m.tensor, m.sizes.tensor);
  return {.query = block_of(c.num_heads, m.tensor, m.sizes.tensor),
          .kv = shared_block(c.num_kv_heads, m.tensor, m.sizes.tensor),
          .delta_key = key,
          .delta_value = scaled(key, per_key)};
}

HeadRanges mixer_heads(const ModelConfig& c, const MeshRank& m) {
  const HeadRanges all = projected_heads(c, m);
  const int64_t i = m.context, ranks = m.sizes.context;
  return {.query = block_of(all.query.size(), i, ranks),
          .kv = shared_block(all.kv.size(), i, ranks),
          .delta_key = shared_block(all.delta_key.size(), i, ranks),
          .delta_value = block_of(all.delta_value.size(), i, ranks)};
}

AttentionShape attention_shape(const ModelConfig& c, const MeshRank& place) {
  const HeadRanges heads = mixer_heads(c, place);
  return {heads.query.size(), heads.kv.size(), c.head_dim};
}

DeltaShape delta_shape(const ModelConfig& c, const MeshRank& place) {
  const HeadRanges heads = mixer_heads(c, place);
  return {heads.delta_key.size(), heads.delta_value.size(), c.linear_key_head_dim, c.linear_value_head_dim};
}

RankColumns query_columns(const ModelConfig& c, const MeshRank& place, int64_t width) {
  return by_rank(c, place, [&](const HeadRanges& heads) { return std::vector{scaled(heads.query, width)}; });
}

RankColumns kv_columns(const ModelConfig& c, const MeshRank& place) {
  return by_rank(c, place, [&](const HeadRanges& heads) { return std::vector{scaled(heads.kv, c.head_dim)}; });
}

RankColumns delta_columns(const ModelConfig& c, const MeshRank& place) {
  const int64_t dk = c.linear_key_head_dim, dv = c.linear_value_head_dim;
  const int64_t keys = projected_heads(c, place).delta_key.size() * dk;
  return by_rank(c, place, [&](const HeadRanges& heads) {
    return std::vector{scaled(heads.delta_key, dk), scaled(heads.delta_key, dk, keys),
                       scaled(heads.delta_value, dv, 2 * keys)};
  });
}

RankColumns delta_value_columns(const ModelConfig& c, const MeshRank& place, int64_t width) {
  return by_rank(c, place, [&](const HeadRanges& heads) { return std::vector{scaled(heads.delta_value, width)}; });
}

}  // namespace furlong
