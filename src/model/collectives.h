// Rows and columns of tensors on their way between ranks. Sums over ranks are formed in the order of ranks, in fp32
// (float64 beside float64), on every kind of group. On a dry stream these take the same memory and move nothing.
#pragma once
#include "model/batch.h"
#include "model/heads.h"

namespace furlong {

// How rows lie on the ranks of a group: rank r has [starts[r], starts[r+1]).
struct RowBlocks {
  Group& group;
  std::vector<int64_t> starts;

  int64_t total() const { return starts.back(); }
  Range of(int rank) const { return {starts[static_cast<size_t>(rank)], starts[static_cast<size_t>(rank) + 1]}; }
  Range mine() const { return of(group.rank()); }
};

// The T rows of a batch on context parallel ranks, and the rows of one of these, counted from its first, on its tensor
// parallel ranks.
RowBlocks context_rows(const Mesh&, int64_t rows);
RowBlocks tensor_rows(const Mesh&, int64_t rows);
// Blocks of these sizes.
RowBlocks blocks_of_sizes(Group&, const std::vector<int64_t>& sizes);

// All rows (total, C), from each rank's own; `mine` itself where the group is one rank.
Tensor all_gather(Exec&, const RowBlocks&, std::string_view name, Tensor mine);
// out (mine, C) = the sum over ranks of their `partial` (total, C), whose dtype may be out's or the accumulating one.
// To be called in groups of more than one.
void reduce_scatter(Exec&, const RowBlocks&, Tensor out, Tensor partial);
// y (mine, N) = the sum over ranks of x (total, K) · w (N, K)ᵀ, whose columns the ranks have split.
void row_parallel(Exec&, const RowBlocks&, Tensor y, Tensor x, Tensor w);
// out = the sum of `count` tensors like it that lie one after another in `parts`, which is overwritten.
void sum_parts(Exec&, Tensor out, Tensor parts, int64_t count);

// A tensor on its way between rows and heads; columns of x by rank.
struct HeadMove {
  Tensor out, x;
  const RankColumns& columns;
};
// out (total, my columns) = everyone's rows of my columns, from x (mine, all columns). Several tensors travel together.
void rows_to_heads(Exec&, const RowBlocks&, std::initializer_list<HeadMove> moves);
// Its transpose: out (mine, all columns) = the columns of every rank, from x (total, my columns) of each. Columns that
// several ranks have are added.
void heads_to_rows(Exec&, const RowBlocks&, std::initializer_list<HeadMove> moves);

}  // namespace furlong
