// Which heads of the mixers a rank computes: tensor parallel ranks split those of the model, and context parallel ranks
// split those of their tensor parallel rank where whole sequences are needed.
#pragma once
#include <vector>

#include "model/config.h"
#include "ops/attention.h"
#include "ops/delta_rule.h"
#include "parallel/mesh.h"

namespace furlong {

// Query, key-and-value heads of attention; key and value heads of the delta net. Where a number of key heads is smaller
// than the number of ranks that share it, a head lies on several.
struct HeadRanges {
  Range query, kv, delta_key, delta_value;
};

// Of the model's heads, those that the projections of a tensor parallel rank hold.
HeadRanges projected_heads(const ModelConfig&, const MeshRank& place);
// Of a rank's projected heads, those whose whole sequences it computes (all of them with context size 1). Their number
// is that of the heads in its KvPages and DeltaSlots.
HeadRanges mixer_heads(const ModelConfig&, const MeshRank& place);

AttentionShape attention_shape(const ModelConfig&, const MeshRank& place = {});
DeltaShape delta_shape(const ModelConfig&, const MeshRank& place = {});

// Columns of a projection's output by context parallel rank: those of the rank's mixer heads.
using RankColumns = std::vector<std::vector<Range>>;
RankColumns query_columns(const ModelConfig&, const MeshRank& place, int64_t width);  // width: of a head
RankColumns kv_columns(const ModelConfig&, const MeshRank& place);
RankColumns delta_columns(const ModelConfig&, const MeshRank& place);  // of q, k and v, as the convolution has them
RankColumns delta_value_columns(const ModelConfig&, const MeshRank& place, int64_t width);

}  // namespace furlong
