// The committed corpora, through the same functions as the fuzzer's.
#include <gtest/gtest.h>

#include <filesystem>

#include "base/file.h"
#include "base/log.h"
#include "targets.h"

namespace furlong {
namespace {

TEST(Fuzz, EveryCorpusIsReadWithoutHarm) {
  log::set_level(log::Level::error);
  for (const fuzz::Target& target : fuzz::targets()) {
    int inputs = 0;
    for (const auto& entry : std::filesystem::directory_iterator(fuzz::data_folder() + "/fuzz/" + target.name)) {
      SCOPED_TRACE(entry.path().string());
      const std::string bytes = read_file(entry.path().string());
      EXPECT_NO_THROW(target.run({reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()}));
      inputs++;
    }
    EXPECT_GE(inputs, 5) << target.name;
  }
}

}  // namespace
}  // namespace furlong
