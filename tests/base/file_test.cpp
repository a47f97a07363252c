#include "base/file.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "base/error.h"

namespace furlong {
namespace {

namespace fs = std::filesystem;

// A folder of its own for each test, gone afterwards.
class FileTest : public testing::Test {
 protected:
  void SetUp() override {
    const auto* info = testing::UnitTest::GetInstance()->current_test_info();
    folder_ = fs::path(testing::TempDir()) / fmt::format("furlong_file_{}_{}", info->name(), getpid());
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }
  std::string path(const std::string& name) const { return (folder_ / name).string(); }
  size_t entries() const { return static_cast<size_t>(std::distance(fs::directory_iterator(folder_), {})); }

  fs::path folder_;
};

Exit code_of(const std::function<void()>& action, std::string* message = nullptr) {
  try {
    action();
  } catch (const Error& e) {
    if (message != nullptr) *message = e.what();
    return e.code();
  }
  return Exit::done;
}

TEST_F(FileTest, WritesAreWholeAndReplace) {
  write_file_atomic(path("a"), "first");
  write_file_atomic(path("a"), std::string_view("sec\0nd", 6));
  EXPECT_EQ(read_file(path("a")), std::string("sec\0nd", 6));
  EXPECT_EQ(entries(), 1u);
}

TEST_F(FileTest, AnAbandonedWriteLeavesTheOldFile) {
  write_file_atomic(path("a"), "old");
  {
    FileWriter writer(path("a"));
    writer.write("new", 3);
  }
  EXPECT_EQ(read_file(path("a")), "old");
  EXPECT_EQ(entries(), 1u);
}

TEST_F(FileTest, LongWritesKeepEveryByte) {
  std::string content(3 * (1 << 20) + 17, '\0');
  for (size_t i = 0; i < content.size(); i++) content[i] = static_cast<char>(i * 2654435761u >> 13);
  FileWriter writer(path("a"));
  for (size_t at = 0, n = 1; at < content.size(); at += n, n = n * 3 % 700001 + 1) {
    n = std::min(n, content.size() - at);
    writer.write(content.data() + at, n);
  }
  EXPECT_EQ(writer.written(), content.size());
  writer.commit();
  EXPECT_EQ(read_file(path("a")), content);
}

TEST_F(FileTest, EmptyFilesCanBeReadAndMapped) {
  write_file_atomic(path("a"), "");
  EXPECT_EQ(read_file(path("a")), "");
  EXPECT_EQ(MappedFile(path("a")).bytes().size(), 0u);
}

TEST_F(FileTest, AMappingMoves) {
  write_file_atomic(path("a"), "content");
  MappedFile first(path("a"));
  MappedFile second(std::move(first));
  EXPECT_EQ(second.bytes().size(), 7u);
  EXPECT_EQ(second.bytes()[0], 'c');
  EXPECT_EQ(second.path(), path("a"));
}

TEST_F(FileTest, WhatCannotBeReadIsNamed) {
  std::string message;
  EXPECT_EQ(code_of([&] { read_file(path("missing")); }, &message), Exit::input);
  EXPECT_NE(message.find("missing: No such file"), std::string::npos) << message;
  EXPECT_EQ(code_of([&] { read_file(folder_.string()); }, &message), Exit::input);
  EXPECT_NE(message.find("not a regular file"), std::string::npos) << message;
}

TEST_F(FileTest, WhatCannotBeWrittenIsNamed) {
  std::string message;
  EXPECT_EQ(code_of([&] { write_file_atomic(path("no/such/a"), "x"); }, &message), Exit::resources);
  EXPECT_NE(message.find("no/such/a"), std::string::npos) << message;
  write_file_atomic(path("file"), "x");
  EXPECT_EQ(code_of([&] { make_directories(path("file/below")); }), Exit::resources);
  EXPECT_EQ(code_of([&] { sync_directory(path("missing")); }), Exit::resources);
}

TEST_F(FileTest, AFullDiskIsReportedAndLeavesNothing) {
  if (!fs::exists("/dev/full")) GTEST_FAIL() << "this system has no /dev/full";
  fs::create_symlink("/dev/full", path("a.tmp"));
  std::string message;
  EXPECT_EQ(code_of([&] { write_file_atomic(path("a"), "x"); }, &message), Exit::resources);
  EXPECT_NE(message.find("No space left"), std::string::npos) << message;
  EXPECT_EQ(entries(), 0u);
}

TEST_F(FileTest, DirectoriesAreMadeWithTheirParents) {
  make_directories(path("x/y/z"));
  make_directories(path("x/y/z"));
  EXPECT_TRUE(fs::is_directory(path("x/y/z")));
}

}  // namespace
}  // namespace furlong
