// The jsonl rows of the batch commands.
#pragma once
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/json.h"
#include "tokenizer/chat.h"

namespace furlong {

// Calls row(json, "file:line") for every row of a jsonl file, or of standard input for "-".
void read_rows(const std::string& path,
               const std::function<void(const OrderedJson& row, const std::string& where)>& row);

// Writes rows to a file that appears complete or not at all, or to standard output for "-".
class RowWriter {
 public:
  explicit RowWriter(const std::string& path);
  ~RowWriter();
  void write(const OrderedJson& row);
  void close();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// A row's "tokens", checked against the vocabulary.
std::vector<int32_t> tokens_of(const OrderedJson& row, int64_t vocab_size, const std::string& where);
// A row's "messages", with all their keys, and its "tools" as JSON text, empty without any.
std::vector<Message> messages_of(const OrderedJson& row, const std::string& where);
std::string tools_of(const OrderedJson& row, const std::string& where);

}  // namespace furlong
