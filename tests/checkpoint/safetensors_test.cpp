#include "checkpoint/safetensors.h"

#include "base/rng.h"
#include "checkpoint/values.h"
#include "scratch.h"

namespace furlong {
namespace {

std::string parse_error(const std::string& file) {
  return error_of([&] { parse_safetensors(bytes_of(file), "x.safetensors"); });
}

const std::string eight = "12345678";

TEST(Safetensors, ReadsEntriesByOffset) {
  const std::string file =
      blob(R"({"__metadata__":{"format":"pt"},"b":{"dtype":"BF16","shape":[2],"data_offsets":[4,8]},)"
           R"("a":{"shape":[1,1],"data_offsets":[0,4],"dtype":"F32"}}   )",
           eight);
  const auto content = parse_safetensors(bytes_of(file), "x");
  ASSERT_EQ(content.entries.size(), 2u);
  EXPECT_EQ(content.entries[0].name, "a");
  EXPECT_EQ(content.entries[0].describe(), "F32[1,1]");
  EXPECT_EQ(content.entries[1].name, "b");
  EXPECT_EQ(std::memcmp(content.entries[1].bytes.data(), "5678", 4), 0);
  EXPECT_EQ(content.metadata.at("format"), "pt");
}

TEST(Safetensors, LegalOddities) {
  const std::vector<std::string> files = {
      blob("{}"),
      blob(R"({"__metadata__":{}})"),
      blob(R"({"s":{"dtype":"F64","shape":[],"data_offsets":[0,8]}})", eight),
      blob(R"({"z":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}})"),
      blob(
          R"({"z":{"dtype":"F32","shape":[3,0,5],"data_offsets":[4,4]},"a":{"dtype":"I32","shape":[1],"data_offsets":[0,4]},)"
          R"("b":{"dtype":"I8","shape":[4],"data_offsets":[4,8]}})",
          eight),
      blob(R"({"u":{"dtype":"NEW7","shape":[3],"data_offsets":[0,8]}})", eight),
      blob(R"({"f":{"dtype":"F8_E4M3","shape":[8],"data_offsets":[0,8]}})", eight),
      blob(R"({"q":{"dtype":"F4","shape":[16],"data_offsets":[0,8]}})", eight),
  };
  for (const auto& file : files) EXPECT_EQ(parse_error(file), "") << file.substr(8);
}

TEST(Safetensors, RefusesBadHeaders) {
  const auto one = [](const std::string& body) { return blob("{\"t\":" + body + "}", eight); };
  const auto with_length = [](uint64_t n) {
    return std::string(reinterpret_cast<const char*>(&n), 8) + "{}      " + eight;
  };
  struct Case {
    std::string file;
    const char* message;
  };
  const std::string nested(70, '[');
  const std::vector<Case> cases = {
      {"", "too few"},
      {"1234567", "too few"},
      {with_length(0), "header length"},
      {with_length(17), "header length 17"},
      {with_length(100'000'001), "header length"},
      {with_length(~uint64_t{0}), "header length"},
      {with_length(~uint64_t{0} - 7), "header length"},
      {blob("[]", eight), "does not begin"},
      {blob(" {}"), "does not begin"},
      {blob("\xef\xbb\xbf{}"), "does not begin"},
      {blob("{} x"), "not valid JSON"},
      {blob("{}{}"), "not valid JSON"},
      {blob("{\"t\""), "not valid JSON"},
      {blob(std::string("{}\0x", 4)), "NUL"},
      {blob("{\"\xff\":1}"), "not valid JSON"},
      {blob("{\"t\":" + nested), "deeper"},
      {blob(R"({"t":1})"), "must be an object"},
      {blob(R"({"__metadata__":[]})"), "__metadata__"},
      {blob(R"({"__metadata__":{"a":1}})"), "must be a string"},
      {blob(R"({"__metadata__":{"a":{"b":"c"}}})"), "must be a string"},
      {blob(
           R"({"a":{"dtype":"I8","shape":[8],"data_offsets":[0,8]},"a":{"dtype":"I8","shape":[8],"data_offsets":[0,8]}})",
           eight),
       "twice"},
      {one(R"({"dtype":"I8","dtype":"I8","shape":[8],"data_offsets":[0,8]})"), "twice"},
      {one(R"({"shape":[8],"data_offsets":[0,8]})"), "no dtype"},
      {one(R"({"dtype":"I8","data_offsets":[0,8]})"), "no shape"},
      {one(R"({"dtype":"I8","shape":[8]})"), "no data_offsets"},
      {one(R"({"dtype":"I8","shape":[8],"data_offsets":[0,8],"x":1})"), "keys other"},
      {one(R"({"dtype":8,"shape":[8],"data_offsets":[0,8]})"), "dtype must be"},
      {one(R"({"dtype":"I8","shape":8,"data_offsets":[0,8]})"), "shape must be"},
      {one(R"({"dtype":"I8","shape":[-8],"data_offsets":[0,8]})"), "whole numbers"},
      {one(R"({"dtype":"I8","shape":[8.0],"data_offsets":[0,8]})"), "whole numbers"},
      {one(R"({"dtype":"I8","shape":[8e0],"data_offsets":[0,8]})"), "whole numbers"},
      {one(R"({"dtype":"I8","shape":["8"],"data_offsets":[0,8]})"), "whole numbers"},
      {one(R"({"dtype":"I8","shape":[[8]],"data_offsets":[0,8]})"), "whole numbers"},
      {one(R"({"dtype":"I8","shape":[9007199254740993],"data_offsets":[0,8]})"), "whole numbers"},
      {one(R"({"dtype":"I8","shape":[36893488147419103232],"data_offsets":[0,8]})"), "whole numbers"},
      {one(R"({"dtype":"I8","shape":[1e999],"data_offsets":[0,8]})"), "too large"},
      {one(R"({"dtype":"I8","shape":[4294967296,4294967296,1],"data_offsets":[0,8]})"), "overflows"},
      {one(R"({"dtype":"F64","shape":[2147483648,1073741824],"data_offsets":[0,8]})"), "number of bytes"},
      {one(R"({"dtype":"I8","shape":[7],"data_offsets":[0,8]})"), "number of bytes"},
      {one(R"({"dtype":"X9","shape":[2147483648,3,2147483648],"data_offsets":[0,8]})"), "its size overflows"},
      {one(R"({"dtype":"BOOL","shape":[2147483648,2,2147483648,0],"data_offsets":[0,0]})"), "its size overflows"},
      {one(R"({"dtype":"F32","shape":[8],"data_offsets":[0,8]})"), "number of bytes"},
      {one(R"({"dtype":"F4","shape":[15],"data_offsets":[0,8]})"), "number of bytes"},
      {one(R"({"dtype":"I8","shape":[],"data_offsets":[0,8]})"), "number of bytes"},
      {one(R"({"dtype":"I8","shape":[8],"data_offsets":[8,0]})"), "not within"},
      {one(R"({"dtype":"I8","shape":[9],"data_offsets":[0,9]})"), "not within"},
      {one(R"({"dtype":"I8","shape":[8],"data_offsets":[0,-8]})"), "whole numbers"},
      {one(R"({"dtype":"I8","shape":[8],"data_offsets":[0]})"), "[begin, end]"},
      {one(R"({"dtype":"I8","shape":[8],"data_offsets":[0,4,8]})"), "[begin, end]"},
      {one(R"({"dtype":"I8","shape":[7],"data_offsets":[1,8]})"), "hole"},
      {one(R"({"dtype":"I8","shape":[7],"data_offsets":[0,7]})"), "1 bytes follow"},
      {blob("{}", "x"), "1 bytes follow"},
      {blob(
           R"({"a":{"dtype":"I8","shape":[3],"data_offsets":[0,3]},"b":{"dtype":"I8","shape":[4],"data_offsets":[4,8]}})",
           eight),
       "hole"},
      {blob(
           R"({"a":{"dtype":"I8","shape":[5],"data_offsets":[0,5]},"b":{"dtype":"I8","shape":[4],"data_offsets":[4,8]}})",
           eight),
       "overlap"},
      {blob(
           R"({"a":{"dtype":"I8","shape":[8],"data_offsets":[0,8]},"b":{"dtype":"I8","shape":[8],"data_offsets":[0,8]}})",
           eight),
       "overlap"},
      {blob(
           R"({"a":{"dtype":"I8","shape":[8],"data_offsets":[0,8]},"b":{"dtype":"I8","shape":[0],"data_offsets":[3,3]}})",
           eight),
       "overlap"},
  };
  for (const auto& c : cases) {
    const std::string message = parse_error(c.file);
    EXPECT_TRUE(contains(message, c.message)) << c.file.substr(std::min<size_t>(8, c.file.size())) << ": " << message;
    EXPECT_EQ(message.rfind("x.safetensors", 0), 0u) << message;
  }
  std::string rank = "1";
  for (int i = 0; i < 70; i++) rank += ",1";
  EXPECT_TRUE(
      contains(parse_error(one("{\"dtype\":\"I8\",\"shape\":[" + rank + "],\"data_offsets\":[0,1]}")), "at most"));
}

std::string small_file() {
  const Scratch scratch;
  write_safetensors(scratch / "a.safetensors", {floats("one", {2}, {1, 2}), floats("two", {1, 3}, {3, 4, 5})});
  return read_file(scratch / "a.safetensors");
}

TEST(Safetensors, EveryTruncationIsRefused) {
  const std::string file = small_file();
  EXPECT_EQ(parse_error(file), "");
  for (size_t n = 0; n < file.size(); n++) EXPECT_NE(parse_error(file.substr(0, n)), "") << n;
  EXPECT_NE(parse_error(file + "x"), "");
}

// Flips, splices, digits and cuts: whatever comes, an Error or a content whose ranges lie in the file.
TEST(Safetensors, RandomMutationsNeverCrash) {
  const std::string good = small_file();
  const std::string marks = "{}[]\",:0123456789-.e\\ \n";
  int accepted = 0;
  for (uint32_t i = 0; i < 20000; i++) {
    const RngKey key{.seed = 1, .group = i, .purpose = Purpose::data};
    std::string file = good;
    const uint32_t edits = 1 + random_word(key, 0) % 4;
    for (uint32_t e = 0; e < edits; e++) {
      const uint32_t kind = random_word(key, 4 * e + 1) % 6, at = random_word(key, 4 * e + 2),
                     what = random_word(key, 4 * e + 3);
      const size_t p = file.empty() ? 0 : at % file.size();
      if (kind == 0 && !file.empty()) file[p] = static_cast<char>(file[p] ^ (1 << what % 8));
      if (kind == 1) file.insert(p, 1, marks[what % marks.size()]);
      if (kind == 2) file.erase(p, 1 + what % 8);
      if (kind == 3 && !file.empty()) file[p] = marks[what % marks.size()];
      if (kind == 4) file += file.substr(p, what % 64);
      if (kind == 5) file.resize(p);
    }
    try {
      const auto content = parse_safetensors(bytes_of(file), "fuzz");
      accepted++;
      for (const auto& entry : content.entries) {
        ASSERT_GE(entry.bytes.data(), bytes_of(file).data());
        ASSERT_LE(entry.bytes.data() + entry.bytes.size(), bytes_of(file).data() + file.size());
      }
    } catch (const Error& e) {
      ASSERT_EQ(static_cast<int>(e.code()), static_cast<int>(Exit::input));
    }
  }
  EXPECT_GT(accepted, 0);
  EXPECT_LT(accepted, 10000);
}

TEST(Safetensors, WriterOrdersAndAligns) {
  const Scratch scratch;
  const auto raw = [](const char* name, const char* dtype, int64_t n, size_t bytes) {
    return TensorSource{.name = name, .dtype = dtype, .shape = {n}, .emit = [bytes](const ByteSink& sink) {
                          const std::string data(bytes, 'x');
                          sink(data.data(), bytes);
                        }};
  };
  write_safetensors(scratch / "a", {raw("c", "U8", 3, 3), raw("b", "BF16", 3, 6), raw("z", "F32", 1, 4),
                                    raw("a", "F32", 2, 8), raw("i", "I64", 1, 8), raw("e", "F32", 0, 0)});
  const SafetensorsFile file(scratch / "a");
  std::string order;
  for (const auto& e : file.entries()) {
    order += e.name;
    const auto bits = static_cast<size_t>(bits_of_file_dtype(e.dtype));
    EXPECT_EQ(reinterpret_cast<uintptr_t>(e.bytes.data()) % (bits / 8), 0u) << e.name;
  }
  EXPECT_EQ(order, "iaezbc");
  EXPECT_EQ(file.metadata().at("format"), "pt");
  EXPECT_EQ(names_in(scratch.path()), std::vector<std::string>{"a"});
}

// A file of the reference implementation, rewritten, is the same file byte for byte.
TEST(Safetensors, RewritesReferenceFilesIdentically) {
  const Scratch scratch;
  for (const char* name : {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"}) {
    const SafetensorsFile file(tiny + "/" + name);
    std::vector<TensorSource> tensors;
    for (const auto& e : file.entries()) {
      tensors.push_back({.name = e.name, .dtype = e.dtype, .shape = e.shape, .emit = [e](const ByteSink& sink) {
                           sink(e.bytes.data(), e.bytes.size());
                         }});
    }
    write_safetensors(scratch / name, tensors, file.metadata());
    EXPECT_EQ(read_file(scratch / name), read_file(tiny + "/" + name));
  }
}

TEST(Safetensors, NamesNeedingEscapesSurvive) {
  const Scratch scratch;
  const std::string odd = "a\"b\\c\nd\xc3\xa9";
  write_safetensors(scratch / "a", {floats(odd, {1}, {1})}, {{"k\"", "v\\"}});
  const SafetensorsFile file(scratch / "a");
  EXPECT_NE(file.find(odd), nullptr);
  EXPECT_EQ(file.metadata().at("k\""), "v\\");
}

TEST(Safetensors, AFullDiskLeavesNothing) {
  const Scratch scratch;
  write_raw(scratch / "a", "before");
  const std::vector<float> many(100000, 1.0f);
  for (const uint64_t limit : {0u, 1u, 100u, 4096u, 399999u}) {
    EXPECT_EQ(run_with_file_limit(limit, [&] { write_safetensors(scratch / "a", {floats("t", {100000}, many)}); }), 4)
        << limit;
    EXPECT_EQ(read_file(scratch / "a"), "before");
    EXPECT_EQ(names_in(scratch.path()), std::vector<std::string>{"a"});
  }
}

class Directory : public ::testing::Test {
 protected:
  void SetUp() override {
    write_shards(scratch.path(),
                 plan_shards({floats("a", {2}, {1, 2}), floats("b", {2}, {3, 4}), floats("c", {1}, {5})}, 8));
  }
  std::string open_error() {
    return error_of([&] { SafetensorsDirectory(scratch.path()); });
  }
  void index(const std::string& weight_map) {
    write_raw(scratch / index_file_name, "{\"weight_map\":" + weight_map + "}");
  }
  Scratch scratch;
  const std::string first = "model-00001-of-00003.safetensors";
};

TEST_F(Directory, ShardsByBytes) {
  const SafetensorsDirectory directory(scratch.path());
  EXPECT_EQ(directory.files().size(), 3u);
  EXPECT_EQ(directory.size(), 3u);
  EXPECT_EQ(directory.file_of("a"), first);
  EXPECT_EQ(floats_of(*directory.find("b")), (std::vector<float>{3, 4}));
  EXPECT_EQ(directory.find("d"), nullptr);
  EXPECT_TRUE(contains(read_file(scratch / index_file_name), "\"total_size\": 20"));
}

TEST_F(Directory, OneFileNeedsNoIndex) {
  const Scratch other;
  write_shards(other.path(), plan_shards({floats("a", {2}, {1, 2}), floats("b", {2}, {3, 4})}, 16));
  EXPECT_EQ(names_in(other.path()), std::vector<std::string>{single_file_name});
  EXPECT_EQ(SafetensorsDirectory(other.path()).size(), 2u);
}

TEST_F(Directory, ATensorLargerThanAShardStandsAlone) {
  EXPECT_EQ(
      plan_shards({floats("a", {1}, {1}), floats("b", {9}, std::vector<float>(9)), floats("c", {1}, {1})}, 8).size(),
      3u);
  EXPECT_TRUE(plan_shards({}, 8).empty());
}

TEST_F(Directory, FollowsLinks) {
  const Scratch hub;
  for (const auto& name : names_in(scratch.path())) std::filesystem::create_symlink(scratch / name, hub / name);
  EXPECT_EQ(SafetensorsDirectory(hub.path()).size(), 3u);
}

TEST_F(Directory, RefusesBadIndexes) {
  const std::string a = "\"a\":\"" + first + "\"", b = "\"b\":\"model-00002-of-00003.safetensors\"",
                    c = "\"c\":\"model-00003-of-00003.safetensors\"";
  index("{" + a + "," + b + "," + c + "}");
  EXPECT_EQ(open_error(), "");
  for (const char* name : {"../x", "/etc/passwd", "a/b", "a\\\\b", "..", ".", "", "a\\u0000b", "a..b"}) {
    index("{" + a + "," + b + "," + c + ",\"d\":\"" + name + "\"}");
    EXPECT_TRUE(contains(open_error(), "not a plain file name")) << name;
  }
  index("{" + a + "," + b + "," + c + ",\"d\":\"other.safetensors\"}");
  EXPECT_TRUE(contains(open_error(), "lists the file other.safetensors"));
  index("{" + a + "," + b + "," + c + ",\"d\":\"" + first + "\"}");
  EXPECT_TRUE(contains(open_error(), "says that d is in"));
  index("{" + a + "," + b + ",\"c\":\"" + first + "\"}");
  EXPECT_TRUE(contains(open_error(), "says that c is in"));
  write_safetensors(scratch / "model-00003-of-00003.safetensors", {floats("c", {1}, {1}), floats("b", {1}, {1})});
  index("{" + a + "," + b + "," + c + "}");
  EXPECT_TRUE(contains(open_error(), "tensor b is in"));
  write_safetensors(scratch / "model-00003-of-00003.safetensors", {floats("c", {1}, {1}), floats("e", {1}, {1})});
  EXPECT_TRUE(contains(open_error(), "tensor e"));
  for (const char* text :
       {"[]", "{}", "{\"weight_map\":[]}", "{\"weight_map\":{}}", "{\"weight_map\":{\"a\":1}}", "{", ""}) {
    write_raw(scratch / index_file_name, text);
    EXPECT_NE(open_error(), "") << text;
  }
}

TEST_F(Directory, NamesWhatIsMissing) {
  const Scratch empty;
  EXPECT_TRUE(contains(error_of([&] { SafetensorsDirectory(empty.path()); }), "neither"));
  EXPECT_TRUE(contains(error_of([&] { SafetensorsDirectory(empty / "nowhere"); }), "neither"));
}

}  // namespace
}  // namespace furlong
