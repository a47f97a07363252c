// Aligned text tables.
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace furlong {

// Columns of a UTF-8 text, one per code point; and its first `columns` ones ("..." in place of what is cut).
size_t text_columns(std::string_view text);
std::string clip_columns(std::string_view text, size_t columns);

class Table {
 public:
  enum class Align { left, right };
  struct Column {
    std::string title;
    Align align = Align::left;
  };
  explicit Table(std::vector<Column> columns);
  // One cell per column; a newline in a cell becomes a space.
  void add(std::vector<std::string> cells);
  void add_rule();  // a line across
  // Rows of equal width, two spaces between columns, a rule under the titles, each line ended by a newline and without
  // spaces at its end. Columns without any title have no heading.
  std::string str() const;

 private:
  std::vector<Column> columns_;
  std::vector<std::vector<std::string>> rows_;  // an empty row is a rule
};

// name, size and share of the total for each row, the total below. Sizes in bytes; a total beyond 64 bits saturates.
std::string memory_table(const std::string& title, std::span<const std::pair<std::string, uint64_t>> rows);

}  // namespace furlong
