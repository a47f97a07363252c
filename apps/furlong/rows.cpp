#include "furlong/rows.h"

#include <cstdio>

#include "base/error.h"
#include "base/file.h"
#include "data/jsonl.h"

namespace furlong {

void read_rows(const std::string& path, const std::function<void(const Json&, const std::string&)>& row) {
  if (path.empty()) fail(Exit::usage, "--input FILE is needed: jsonl rows, or - for standard input");
  JsonlReader reader(path);
  while (reader.next()) {
    const Json json = parse_json_line(reader.text(), reader.name(), reader.line());
    if (!json.is_object()) fail(Exit::input, "{}: a JSON object is wanted", reader.where());
    row(json, reader.where());
  }
}

struct RowWriter::Impl {
  std::unique_ptr<FileWriter> file;  // null: standard output
};

RowWriter::RowWriter(const std::string& path) : impl_(std::make_unique<Impl>()) {
  if (path != "-") impl_->file = std::make_unique<FileWriter>(path);
}

RowWriter::~RowWriter() = default;

void RowWriter::write(const OrderedJson& row) {
  const std::string line = row.dump(-1, ' ', false, OrderedJson::error_handler_t::replace) + "\n";
  if (impl_->file != nullptr) {
    impl_->file->write(line.data(), line.size());
  } else if (std::fwrite(line.data(), 1, line.size(), stdout) != line.size()) {
    fail(Exit::resources, "cannot write to standard output");
  }
}

void RowWriter::close() {
  if (impl_->file != nullptr) {
    impl_->file->commit();
  } else if (std::fflush(stdout) != 0) {
    fail(Exit::resources, "cannot write to standard output");
  }
}

std::vector<int32_t> tokens_of(const Json& row, int64_t vocab_size, const std::string& where) {
  const Json& list = row.at("tokens");
  if (!list.is_array() || list.empty()) fail(Exit::input, "{}: tokens must be a list of at least one token id", where);
  std::vector<int32_t> tokens;
  for (const Json& id : list) {
    if (!id.is_number_integer() || id.get<int64_t>() < 0 || id.get<int64_t>() >= vocab_size) {
      fail(Exit::input, "{}: tokens holds {}, which is no token id of a vocabulary of {}", where, id.dump(),
           vocab_size);
    }
    tokens.push_back(id.get<int32_t>());
  }
  return tokens;
}

}  // namespace furlong
