// Tokenizers and reference rows of the tests.
#pragma once
#include <gtest/gtest.h>

#include <functional>
#include <string>

#include "base/error.h"
#include "base/file.h"
#include "base/json.h"
#include "tokenizer/tokenizer.h"

namespace furlong {

inline std::string data_path(const std::string& name) { return std::string(FURLONG_TEST_DATA) + "/tokenizer/" + name; }
inline Json data_json(const std::string& name) { return read_json_file(data_path(name)); }

// tiny.json after an edit of its JSON.
inline Tokenizer edited_tiny(const std::function<void(Json&)>& edit) {
  Json json = data_json("tiny.json");
  edit(json);
  return Tokenizer::parse(json.dump(), "edited.json");
}

// Expects an Error with this code whose message has every one of the pieces.
inline void expect_error(Exit code, const std::vector<std::string>& pieces, const std::function<void()>& action) {
  try {
    action();
    ADD_FAILURE() << "no error; expected one with " << pieces.front();
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), code) << e.what();
    for (const std::string& piece : pieces) {
      EXPECT_NE(std::string(e.what()).find(piece), std::string::npos) << "no `" << piece << "` in: " << e.what();
    }
  }
}

}  // namespace furlong
