#include "monitor/table.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>

#include "base/check.h"
#include "base/text.h"

namespace furlong {
namespace {

bool continues(char c) { return (static_cast<unsigned char>(c) & 0xC0) == 0x80; }

void append_cell(std::string& line, const std::string& cell, size_t width, Table::Align align) {
  const std::string gap(width - text_columns(cell), ' ');
  line += align == Table::Align::left ? cell + gap : gap + cell;
}

}  // namespace

size_t text_columns(std::string_view text) {
  return static_cast<size_t>(std::count_if(text.begin(), text.end(), [](char c) { return !continues(c); }));
}

std::string clip_columns(std::string_view text, size_t columns) {
  if (text_columns(text) <= columns) return std::string(text);
  const size_t kept = columns >= 3 ? columns - 3 : 0;
  size_t end = 0;
  for (size_t seen = 0; end < text.size(); end++) {
    if (!continues(text[end]) && seen++ == kept) break;
  }
  return std::string(text.substr(0, end)) + std::string(std::min<size_t>(columns, 3), '.');
}

Table::Table(std::vector<Column> columns) : columns_(std::move(columns)) { CHECK(!columns_.empty()); }

void Table::add(std::vector<std::string> cells) {
  CHECK(cells.size() == columns_.size(), "{} cells for {} columns", cells.size(), columns_.size());
  for (std::string& cell : cells) std::replace(cell.begin(), cell.end(), '\n', ' ');
  rows_.push_back(std::move(cells));
}

void Table::add_rule() { rows_.emplace_back(); }

std::string Table::str() const {
  std::vector<size_t> widths;
  bool titled = false;
  for (const Column& column : columns_) {
    widths.push_back(text_columns(column.title));
    titled |= !column.title.empty();
  }
  for (const auto& row : rows_) {
    for (size_t i = 0; i < row.size(); i++) widths[i] = std::max(widths[i], text_columns(row[i]));
  }
  size_t total = 2 * (widths.size() - 1);
  for (const size_t width : widths) total += width;

  std::string out;
  const auto add_line = [&](auto&& cell) {
    std::string line;
    for (size_t i = 0; i < widths.size(); i++) {
      if (i > 0) line += "  ";
      append_cell(line, cell(i), widths[i], columns_[i].align);
    }
    line.erase(line.find_last_not_of(' ') + 1);
    out += line + "\n";
  };
  const std::string rule = std::string(total, '-') + "\n";
  if (titled) {
    add_line([&](size_t i) { return columns_[i].title; });
    out += rule;
  }
  for (const auto& row : rows_) {
    if (row.empty()) {
      out += rule;
    } else {
      add_line([&](size_t i) { return row[i]; });
    }
  }
  return out;
}

std::string memory_table(const std::string& title, std::span<const std::pair<std::string, uint64_t>> rows) {
  uint64_t total = 0;
  for (const auto& row : rows) {
    const bool fits = row.second <= std::numeric_limits<uint64_t>::max() - total;
    total = fits ? total + row.second : std::numeric_limits<uint64_t>::max();
  }
  Table table({{title}, {"size", Table::Align::right}, {"share", Table::Align::right}});
  const auto add = [&](const std::string& name, uint64_t bytes) {
    const double share = total > 0 ? 100.0 * static_cast<double>(bytes) / static_cast<double>(total) : 0;
    table.add({name, human_bytes(bytes), fmt::format("{:.1f}%", share)});
  };
  for (const auto& [name, bytes] : rows) add(name, bytes);
  table.add_rule();
  add("total", total);
  return table.str();
}

}  // namespace furlong
