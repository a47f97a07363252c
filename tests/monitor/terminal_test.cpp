#include <algorithm>
#include <thread>

#include "data_room/scratch.h"
#include "monitor/progress.h"
#include "monitor/table.h"

namespace furlong {
namespace {

std::string shown(bool terminal, const std::function<void(Progress&)>& work) {
  const Scratch scratch;
  std::FILE* file = std::fopen(scratch.path("out").c_str(), "w");
  {
    Progress progress("load\x1b[31m", 1000, terminal, file);
    work(progress);
  }
  std::fclose(file);
  return read_file(scratch.path("out"));
}

TEST(Progress, SilentWithoutATerminal) {
  EXPECT_EQ(shown(false,
                  [](Progress& p) {
                    std::this_thread::sleep_for(std::chrono::milliseconds(150));
                    p.update(5);
                  }),
            "");
}

TEST(Progress, DrawsSeldomAndClearsItself) {
  const auto begin = std::chrono::steady_clock::now();
  const std::string text = shown(true, [](Progress& p) {
    for (int i = 0; i < 50; i++) {
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
      p.advance(10);
    }
  });
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  const auto draws = std::count(text.begin(), text.end(), '\r');
  EXPECT_GE(draws, 2);
  EXPECT_LE(static_cast<double>(draws), seconds * 10 + 1);  // one of them clears
  EXPECT_EQ(text.substr(text.size() - 4), "\r\x1b[K");
  expect_contains(text, "load?[31m");
  EXPECT_EQ(text.find("\x1b[31m"), text.npos);
}

TEST(Progress, TextFitsALine) {
  EXPECT_EQ(progress_text("load", 4, 10, 60), "load  [########------------]  40%  4/10  ETA 90.0s");
  EXPECT_EQ(progress_text("load", 0, 10, 60), "load  [--------------------]   0%  0/10");
  EXPECT_EQ(progress_text("load", 10, 10, 60), "load  [####################] 100%  10/10");
  EXPECT_EQ(progress_text("load", 0, 0, 0), "load  [####################] 100%  0/0");
  const int64_t most = std::numeric_limits<int64_t>::max();
  for (const int64_t total : {int64_t{999999}, most}) {
    for (const int64_t done : {int64_t{1}, total / 2, total - 1}) {
      EXPECT_LE(text_columns(progress_text(std::string(200, 'x'), done, total, 1e7)), 79u);
    }
  }
}

TEST(Table, Aligns) {
  Table table({{"name"}, {"size", Table::Align::right}});
  table.add({"weights", "9 B"});
  table.add({"é", "1.50 KiB"});
  table.add_rule();
  table.add({"two\nlines", ""});
  EXPECT_EQ(table.str(),
            "name           size\n"
            "-------------------\n"
            "weights         9 B\n"
            "é          1.50 KiB\n"
            "-------------------\n"
            "two lines\n");
}

TEST(Table, Memory) {
  const std::vector<std::pair<std::string, uint64_t>> rows = {{"weights", 3 << 20}, {"moments", 1 << 20}};
  EXPECT_EQ(memory_table("host", rows),
            "host        size   share\n"
            "------------------------\n"
            "weights  3.0 MiB   75.0%\n"
            "moments  1.0 MiB   25.0%\n"
            "------------------------\n"
            "total    4.0 MiB  100.0%\n");
  const std::vector<std::pair<std::string, uint64_t>> huge = {{"a", ~uint64_t{0}}, {"b", 5}};
  expect_contains(memory_table("host", huge), "total  16.0 EiB");
  expect_contains(memory_table("none", {}), "total   0 B   0.0%");
}

TEST(Columns, CountCodePoints) {
  EXPECT_EQ(text_columns("aé±"), 3u);
  EXPECT_EQ(clip_columns("abcdef", 6), "abcdef");
  EXPECT_EQ(clip_columns("abcdefg", 6), "abc...");
  EXPECT_EQ(clip_columns("éééééé", 5), "éé...");
  EXPECT_EQ(clip_columns("abc", 2), "..");
}

}  // namespace
}  // namespace furlong
