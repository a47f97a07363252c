#include "model/embedding.h"

#include "model/collectives.h"
#include "ops/embed.h"

namespace furlong {
namespace {

// The first entry of the vocabulary that lies here.
int64_t first_entry(const ModelConfig& c, const Mesh& mesh) {
  return block_of(c.vocab_size, mesh.place().tensor, mesh.place().sizes.tensor).begin;
}

// The tokens of a context parallel rank.
Tensor tokens_of(const Mesh& mesh, const Tensor& tokens) {
  const Range mine = context_rows(mesh, tokens.rows()).mine();
  return tokens.rows(mine.begin, mine.end);
}

}  // namespace

void embed_here(Exec& exec, const ModelConfig& c, Tensor table, Tensor x, Tensor tokens) {
  auto& [stream, arena, mesh] = exec;
  const RowBlocks blocks = tensor_rows(mesh, tokens.rows());
  const Tensor mine = tokens_of(mesh, tokens);
  if (blocks.group.size() == 1) {
    embed(stream, x, mine, table);
    return;
  }
  const Arena::Scope scope(arena);
  const Tensor partial = arena.make("embedding.partial", x.dtype(), {blocks.total(), x.dim(1)});
  embed(stream, partial, mine, table, first_entry(c, mesh), c.vocab_size);
  reduce_scatter(exec, blocks, x, partial);
}

void embed_here_backward(Exec& exec, const ModelConfig& c, Tensor dtable, Tensor dx, Tensor tokens) {
  const Arena::Scope scope(exec.arena);
  const Tensor all = all_gather(exec, tensor_rows(exec.mesh, tokens.rows()), "embedding.dx", dx);
  embed_backward(exec.stream, dtable, all, tokens_of(exec.mesh, tokens), first_entry(c, exec.mesh), c.vocab_size);
}

}  // namespace furlong
