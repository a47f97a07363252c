#include "furlong/rows.h"

#include <cstdio>

#include "base/error.h"
#include "base/file.h"
#include "data/jsonl.h"

namespace furlong {

void read_rows(const std::string& path, const std::function<void(const OrderedJson&, const std::string&)>& row) {
  if (path.empty()) fail(Exit::usage, "--input FILE is needed: jsonl rows, or - for standard input");
  JsonlReader reader(path);
  while (reader.next()) {
    const OrderedJson json = parse_ordered_json_line(reader.text(), reader.name(), reader.line());
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

std::vector<int32_t> tokens_of(const OrderedJson& row, int64_t vocab_size, const std::string& where) {
  const OrderedJson& list = row.at("tokens");
  if (!list.is_array() || list.empty()) fail(Exit::input, "{}: tokens must be a list of at least one token id", where);
  std::vector<int32_t> tokens;
  for (const OrderedJson& id : list) {
    if (!id.is_number_integer() || id.get<int64_t>() < 0 || id.get<int64_t>() >= vocab_size) {
      fail(Exit::input, "{}: tokens holds {}, which is no token id of a vocabulary of {}", where, id.dump(),
           vocab_size);
    }
    tokens.push_back(id.get<int32_t>());
  }
  return tokens;
}

std::vector<Message> messages_of(const OrderedJson& row, const std::string& where) {
  if (!row.contains("messages") || !row["messages"].is_array() || row["messages"].empty()) {
    fail(Exit::input, "{}: the row needs \"messages\", a list of at least one message", where);
  }
  std::vector<Message> messages;
  for (OrderedJson others : row["messages"]) {
    if (!others.is_object() || !others.contains("role") || !others["role"].is_string()) {
      fail(Exit::input, "{}: a message is an object with a \"role\", a text, and a \"content\"", where);
    }
    Message message{others["role"], ""};
    others.erase("role");
    // A content in parts, or none beside a tool's call, is the template's to take.
    if (others.contains("content") && others["content"].is_string()) {
      message.content = others["content"];
      others.erase("content");
    } else if (!others.contains("content") && !others.contains("tool_calls")) {
      fail(Exit::input, "{}: a message of role {} has no \"content\"", where, message.role);
    }
    if (!others.empty()) message.others = others.dump();
    messages.push_back(std::move(message));
  }
  return messages;
}

std::string tools_of(const OrderedJson& row, const std::string& where) {
  if (!row.contains("tools") || row["tools"].is_null()) return "";
  if (!row["tools"].is_array()) fail(Exit::input, "{}: \"tools\" must be a list", where);
  return row["tools"].dump();
}

}  // namespace furlong
