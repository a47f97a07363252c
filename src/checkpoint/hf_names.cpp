#include "checkpoint/hf_names.h"

#include <algorithm>
#include <array>
#include <string_view>

#include "base/check.h"

namespace furlong {
namespace {

constexpr std::string_view own_trunk = "model.language_model.";
constexpr std::string_view own_head = "lm_head.weight";

std::string with_number(std::string pattern, int64_t number) {
  const size_t at = pattern.find("{}");
  CHECK(at != std::string::npos, "pattern {}", pattern);
  return pattern.replace(at, 2, std::to_string(number));
}

std::vector<FilePiece> joined_pieces(const TensorSpec& spec) {
  const JoinedRows& j = spec.joined;
  CHECK(!j.name.empty() && spec.full_shape.size() == 2, "{} lies among no others", spec.name);
  const int64_t width = spec.full_shape[1];
  std::vector<FilePiece> pieces;
  for (const auto& block : j.blocks) {
    for (int64_t g = 0; g < j.groups; g++) {
      pieces.push_back({.name = j.name,
                        .shape = {j.groups * j.group_rows, width},
                        .offset = (block.first + g * block.rows) * width,
                        .numel = block.rows * width,
                        .at = (g * j.group_rows + block.at) * width});
    }
  }
  return pieces;
}

}  // namespace

std::vector<FilePiece> pieces_of(const TensorSpec& spec, Stored stored) {
  if (stored == Stored::whole) return {{spec.name, spec.full_shape, 0, spec.full_numel()}};
  if (stored == Stored::joined) return joined_pieces(spec);
  CHECK(!spec.per_expert.empty() && spec.full_shape.size() == 3, "{} has no experts", spec.name);
  std::vector<std::string> patterns;
  size_t begin = 0;
  for (size_t bar; (bar = spec.per_expert.find('|', begin)) != std::string::npos; begin = bar + 1) {
    patterns.push_back(spec.per_expert.substr(begin, bar - begin));
  }
  patterns.push_back(spec.per_expert.substr(begin));
  const auto parts = static_cast<int64_t>(patterns.size());
  CHECK(spec.full_shape[1] % parts == 0, "{} in {} parts", spec.name, parts);
  const int64_t rows = spec.full_shape[1] / parts, numel = rows * spec.full_shape[2];
  std::vector<FilePiece> pieces;
  for (int64_t e = 0; e < spec.full_shape[0]; e++) {
    for (int64_t p = 0; p < parts; p++) {
      pieces.push_back({with_number(patterns[static_cast<size_t>(p)], e),
                        {rows, spec.full_shape[2]},
                        (e * parts + p) * numel,
                        numel});
    }
  }
  return pieces;
}

std::string HfLayout::translate(const std::string& name) const {
  if (name.starts_with(own_trunk)) return trunk + name.substr(own_trunk.size());
  return name == own_head ? head : name;
}

bool HfLayout::owns(const std::string& name, bool has_mtp) const {
  if (name.starts_with("mtp.")) return has_mtp;
  if (name.starts_with("model.visual.") || name.starts_with("visual.")) return false;
  return name.starts_with(trunk) || name.find("lm_head.") != std::string::npos;
}

HfLayout detect_layout(const std::vector<TensorSpec>& specs, const HasTensor& has) {
  HfLayout best;
  int64_t most = -1;
  for (const char* trunk : {"model.language_model.", "model.", "language_model.model."}) {
    HfLayout layout;
    layout.trunk = trunk;
    const int64_t found = std::count_if(specs.begin(), specs.end(), [&](const TensorSpec& spec) {
      return spec.name.starts_with(own_trunk) && has(layout.translate(spec.name));
    });
    if (found > most) {
      most = found;
      best = layout;
    }
  }
  for (const char* head : {"lm_head.weight", "model.lm_head.weight", "language_model.lm_head.weight"}) {
    if (!has(head)) continue;
    best.head = head;
    break;
  }
  return best;
}

Stored stored_as(const TensorSpec& spec, const HfLayout& layout, const HasTensor& has) {
  if (has(layout.translate(spec.name))) return Stored::whole;
  if (!spec.joined.name.empty() && has(layout.translate(spec.joined.name))) return Stored::joined;
  if (spec.per_expert.empty()) return Stored::whole;
  const auto pieces = pieces_of(spec, Stored::per_expert);
  const bool some =
      std::any_of(pieces.begin(), pieces.end(), [&](const FilePiece& p) { return has(layout.translate(p.name)); });
  return some ? Stored::per_expert : Stored::whole;
}

}  // namespace furlong
