#include "model/collectives.h"

#include <algorithm>

#include "ops/linear.h"
#include "ops/reduce.h"
#include "tensor/copy.h"

namespace furlong {
namespace {

int64_t width_of(const std::vector<Range>& ranges) {
  int64_t width = 0;
  for (const Range& r : ranges) width += r.size();
  return width;
}

// Calls f(range of the whole, range of the rank's own columns).
template <class F>
void each_range(const std::vector<Range>& ranges, F&& f) {
  int64_t at = 0;
  for (const Range& r : ranges) {
    if (r.size() > 0) f(r, Range{at, at + r.size()});
    at += r.size();
  }
}

bool overlap(const RankColumns& columns) {
  std::vector<Range> all;
  for (const auto& ranges : columns) all.insert(all.end(), ranges.begin(), ranges.end());
  std::sort(all.begin(), all.end(), [](const Range& a, const Range& b) { return a.begin < b.begin; });
  for (size_t i = 1; i < all.size(); i++) {
    if (all[i].begin < all[i - 1].end) return true;
  }
  return false;
}

// Rows of several tensors for one rank, one tensor after another in one piece of memory.
struct Parcel {
  Tensor whole;
  std::vector<Tensor> parts;  // (rows, columns of rank `columns_of`)

  Parcel(Arena& arena, std::initializer_list<HeadMove> moves, int64_t rows, int columns_of) {
    constexpr int64_t alignment = 16;
    std::vector<int64_t> starts = {0}, widths;
    for (const HeadMove& move : moves) {
      widths.push_back(width_of(move.columns[static_cast<size_t>(columns_of)]));
      const int64_t bytes = rows * widths.back() * static_cast<int64_t>(size_of(move.x.dtype()));
      starts.push_back(starts.back() + (bytes + alignment - 1) / alignment * alignment);
    }
    whole = arena.make("collectives.parcel", DType::u8, {starts.back()});
    for (size_t i = 0; i < widths.size(); i++) {
      parts.emplace_back(static_cast<uint8_t*>(whole.data()) + starts[i], moves.begin()[i].x.dtype(),
                         std::initializer_list<int64_t>{rows, widths[i]}, whole.device());
    }
  }
};

void exchange(Exec& exec, Group& group, const std::vector<Parcel>& arriving, const std::vector<Parcel>& leaving) {
  if (exec.stream.is_dry()) return;
  std::vector<Tensor> to, from;
  for (const Parcel& parcel : arriving) to.push_back(parcel.whole);
  for (const Parcel& parcel : leaving) from.push_back(parcel.whole);
  group.exchange(exec.stream, to, from);
}

// out = the columns that every rank sent as tensor `m` of its parcel; added in the order of ranks where several have
// them.
void join_columns(Exec& exec, const HeadMove& move, const std::vector<Parcel>& arrived, size_t m) {
  const auto& [out, x, columns] = move;
  const bool summed = overlap(columns);
  const Arena::Scope scope(exec.arena);
  const Tensor sum =
      summed ? exec.arena.make("collectives.sum", accumulate_dtype(x.dtype()), {out.rows(), out.dim(1)}) : out;
  if (summed) set_zero(exec.stream, sum);
  for (size_t r = 0; r < arrived.size(); r++) {
    each_range(columns[r], [&](const Range& in, const Range& at) {
      const Tensor all = sum.columns(in.begin, in.end), part = arrived[r].parts[m].columns(at.begin, at.end);
      if (summed) {
        add(exec.stream, all, part);
      } else {
        copy(exec.stream, all, part);
      }
    });
  }
  if (summed) convert(exec.stream, out, sum);
}

}  // namespace

RowBlocks blocks_of_sizes(Group& group, const std::vector<int64_t>& sizes) {
  CHECK(std::ssize(sizes) == group.size(), "{} blocks on {} ranks", sizes.size(), group.size());
  std::vector<int64_t> starts = {0};
  for (const int64_t n : sizes) starts.push_back(starts.back() + n);
  return {group, std::move(starts)};
}

RowBlocks context_rows(const Mesh& mesh, int64_t rows) {
  std::vector<int64_t> sizes;
  for (int64_t r = 0; r < mesh.context().size(); r++) sizes.push_back(block_of(rows, r, mesh.context().size()).size());
  return blocks_of_sizes(mesh.context(), sizes);
}

RowBlocks tensor_rows(const Mesh& mesh, int64_t rows) {
  const MeshRank& m = mesh.place();
  std::vector<int64_t> sizes;
  for (int64_t r = 0; r < m.sizes.tensor; r++) {
    sizes.push_back(block_of(rows, m.context * m.sizes.tensor + r, m.row_parts()).size());
  }
  return blocks_of_sizes(mesh.tensor(), sizes);
}

Tensor all_gather(Exec& exec, const RowBlocks& blocks, std::string_view name, Tensor mine) {
  Group& group = blocks.group;
  CHECK(mine.rows() == blocks.mine().size(), "{} beside a block of {} rows", mine.describe(), blocks.mine().size());
  if (group.size() == 1) return mine;
  const Tensor all = exec.arena.make(name, mine.dtype(), {blocks.total(), mine.row_size()});
  std::vector<Tensor> to, from(static_cast<size_t>(group.size()), mine);
  for (int r = 0; r < group.size(); r++) to.push_back(all.rows(blocks.of(r).begin, blocks.of(r).end));
  if (!exec.stream.is_dry()) group.exchange(exec.stream, to, from);
  return all;
}

void sum_parts(Exec& exec, Tensor out, Tensor parts, int64_t count) {
  const int64_t n = out.rows();
  CHECK(parts.rows() == n * count, "{} parts of {} in {}", count, out.describe(), parts.describe());
  const auto part = [&](int64_t i) { return parts.rows(i * n, (i + 1) * n); };
  const Arena::Scope scope(exec.arena);
  const DType acc = accumulate_dtype(out.dtype());
  Tensor sum = part(0);
  if (parts.dtype() != acc) {
    sum = exec.arena.make("collectives.sum", acc, {n, out.row_size()});
    convert(exec.stream, sum, part(0));
  }
  for (int64_t i = 1; i < count; i++) add(exec.stream, sum, part(i));
  convert(exec.stream, out, sum);
}

void reduce_scatter(Exec& exec, const RowBlocks& blocks, Tensor out, Tensor partial) {
  Group& group = blocks.group;
  const int64_t n = blocks.mine().size(), size = group.size();
  CHECK(size > 1 && out.rows() == n && partial.rows() == blocks.total() && partial.contiguous(),
        "sum over {} ranks of {} into {}", size, partial.describe(), out.describe());
  const Arena::Scope scope(exec.arena);
  const Tensor parts = exec.arena.make("collectives.parts", partial.dtype(), {size * n, partial.row_size()});
  std::vector<Tensor> to, from;
  for (int r = 0; r < size; r++) {
    to.push_back(parts.rows(r * n, (r + 1) * n));
    from.push_back(partial.rows(blocks.of(r).begin, blocks.of(r).end));
  }
  if (!exec.stream.is_dry()) group.exchange(exec.stream, to, from);
  sum_parts(exec, out, parts, size);
}

void row_parallel(Exec& exec, const RowBlocks& blocks, Tensor y, Tensor x, Tensor w) {
  if (blocks.group.size() == 1) {
    linear(exec.stream, y, x, w);
    return;
  }
  const Arena::Scope scope(exec.arena);
  const Tensor partial =
      exec.arena.make("collectives.partial", accumulate_dtype(y.dtype()), {blocks.total(), y.dim(1)});
  linear(exec.stream, partial, x, w);
  reduce_scatter(exec, blocks, y, partial);
}

void rows_to_heads(Exec& exec, const RowBlocks& blocks, std::initializer_list<HeadMove> moves) {
  auto& [stream, arena, mesh] = exec;
  Group& group = blocks.group;
  const Arena::Scope scope(arena);
  std::vector<Parcel> leaving, arriving;
  for (int r = 0; r < group.size(); r++) {
    leaving.emplace_back(arena, moves, blocks.mine().size(), r);
    arriving.emplace_back(arena, moves, blocks.of(r).size(), group.rank());
  }
  for (size_t m = 0; m < moves.size(); m++) {
    const auto& [out, x, columns] = moves.begin()[m];
    CHECK(x.rows() == blocks.mine().size() && out.rows() == blocks.total(), "heads {} from rows {}", out.describe(),
          x.describe());
    for (size_t r = 0; r < leaving.size(); r++) {
      each_range(columns[r], [&](const Range& in, const Range& at) {
        copy(stream, leaving[r].parts[m].columns(at.begin, at.end), x.columns(in.begin, in.end));
      });
    }
  }
  exchange(exec, group, arriving, leaving);
  for (size_t m = 0; m < moves.size(); m++) {
    for (int r = 0; r < group.size(); r++) {
      const Range theirs = blocks.of(r);
      copy(stream, moves.begin()[m].out.rows(theirs.begin, theirs.end), arriving[static_cast<size_t>(r)].parts[m]);
    }
  }
}

void heads_to_rows(Exec& exec, const RowBlocks& blocks, std::initializer_list<HeadMove> moves) {
  auto& [stream, arena, mesh] = exec;
  Group& group = blocks.group;
  const Arena::Scope scope(arena);
  std::vector<Parcel> leaving, arriving;
  for (int r = 0; r < group.size(); r++) {
    leaving.emplace_back(arena, moves, blocks.of(r).size(), group.rank());
    arriving.emplace_back(arena, moves, blocks.mine().size(), r);
  }
  for (size_t m = 0; m < moves.size(); m++) {
    const auto& [out, x, columns] = moves.begin()[m];
    CHECK(out.rows() == blocks.mine().size() && x.rows() == blocks.total(), "rows {} from heads {}", out.describe(),
          x.describe());
    for (int r = 0; r < group.size(); r++) {
      const Range theirs = blocks.of(r);
      copy(stream, leaving[static_cast<size_t>(r)].parts[m], x.rows(theirs.begin, theirs.end));
    }
  }
  exchange(exec, group, arriving, leaving);
  for (size_t m = 0; m < moves.size(); m++) join_columns(exec, moves.begin()[m], arriving, m);
}

}  // namespace furlong
