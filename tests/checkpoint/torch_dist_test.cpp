// The readers of PyTorch's formats, against a directory that PyTorch wrote and against hostile bytes.
#include "checkpoint/dcp_metadata.h"
#include "checkpoint/pickle.h"
#include "checkpoint/torch_archive.h"
#include "checkpoint/zip.h"
#include "scratch.h"

namespace furlong {
namespace {

const std::string golden = FURLONG_TEST_DATA "/torch_dist/release";

DcpMetadata golden_metadata() {
  const std::string text = read_file(golden + "/.metadata");
  return parse_dcp_metadata(bytes_of(text), golden + "/.metadata");
}

std::string archive_of(const DcpMetadata& m, const DcpChunk& chunk) {
  return read_file(golden + "/" + m.files[chunk.file]).substr(chunk.offset, chunk.length);
}

std::string pickle_error(const std::string& bytes) {
  return error_of([&] { pickle::parse(bytes_of(bytes), "p"); });
}

TEST(DcpMetadata, ReadsTheGolden) {
  const DcpMetadata m = golden_metadata();
  EXPECT_EQ(m.files.size(), 4u);
  ASSERT_EQ(m.bytes_items.size(), 1u);
  EXPECT_EQ(m.bytes_items[0], "decoder.layers.3.mlp.experts.experts.linear_fc1._extra_state/shard_0_1");
  const DcpTensor* embed = m.find("embedding.word_embeddings.weight");
  ASSERT_NE(embed, nullptr);
  EXPECT_EQ(embed->dtype, "BF16");
  EXPECT_EQ(embed->shape, (std::vector<int64_t>{512, 64}));
  ASSERT_EQ(embed->chunks.size(), 2u);
  EXPECT_EQ(embed->chunks[1].offsets, (std::vector<int64_t>{256, 0}));
  EXPECT_EQ(m.find("decoder.layers.0.self_attention.linear_attn.A_log")->dtype, "F32");
  EXPECT_EQ(m.find("nothing"), nullptr);
}

TEST(DcpMetadata, WhatIsWrittenReadsTheSame) {
  const DcpMetadata m = golden_metadata();
  const std::string text = emit_dcp_metadata(m, "an id");
  const DcpMetadata back = parse_dcp_metadata(bytes_of(text), "written");
  ASSERT_EQ(back.tensors.size(), m.tensors.size());
  for (size_t i = 0; i < m.tensors.size(); i++) {
    const DcpTensor &a = m.tensors[i], &b = back.tensors[i];
    EXPECT_EQ(a.key, b.key);
    EXPECT_EQ(a.dtype, b.dtype);
    EXPECT_EQ(a.shape, b.shape);
    ASSERT_EQ(a.chunks.size(), b.chunks.size());
    for (size_t c = 0; c < a.chunks.size(); c++) {
      EXPECT_EQ(a.chunks[c].offsets, b.chunks[c].offsets);
      EXPECT_EQ(a.chunks[c].sizes, b.chunks[c].sizes);
      EXPECT_EQ(a.chunks[c].offset, b.chunks[c].offset);
      EXPECT_EQ(a.chunks[c].length, b.chunks[c].length);
      EXPECT_EQ(m.files[a.chunks[c].file], back.files[b.chunks[c].file]);
    }
  }
}

TEST(DcpMetadata, RefusesBoxesThatContradict) {
  const auto refuses = [](const std::function<void(DcpTensor&)>& edit, const std::string& why) {
    DcpMetadata m = golden_metadata();
    for (auto& t : m.tensors) {
      if (t.key == "output_layer.weight") edit(t);
    }
    const std::string text = emit_dcp_metadata(m, "id");
    const std::string error = error_of([&] { parse_dcp_metadata(bytes_of(text), "m"); });
    EXPECT_TRUE(contains(error, why)) << why << ": " << error;
  };
  refuses([](DcpTensor& t) { t.chunks.pop_back(); }, "do not make it up");
  refuses([](DcpTensor& t) { t.chunks[1].offsets[0] = 128; }, "overlap");
  refuses([](DcpTensor& t) { t.chunks[1].offsets[0] = 300; }, "reaches out");
  refuses([](DcpTensor& t) { t.shape[0] = INT64_MAX; }, "overflows");
  refuses([](DcpTensor& t) { t.chunks[1] = t.chunks[0]; }, "two archives");
  refuses([](DcpTensor& t) { t.chunks[1].offset = t.chunks[0].offset, t.chunks[1].file = t.chunks[0].file; },
          "overlap at byte");
  for (const char* name : {"../x", "a/b", "/etc/passwd", "..", ""}) {
    DcpMetadata m = golden_metadata();
    m.files[0] = name;
    const std::string text = emit_dcp_metadata(m, "id");
    EXPECT_TRUE(contains(error_of([&] { parse_dcp_metadata(bytes_of(text), "m"); }), "plain file name")) << name;
  }
}

TEST(TorchArchive, ReadsEveryArchiveOfTheGolden) {
  const DcpMetadata m = golden_metadata();
  size_t archives = 0;
  for (const auto& tensor : m.tensors) {
    for (const auto& chunk : tensor.chunks) {
      const std::string bytes = archive_of(m, chunk);
      const ArchivedTensor t = read_archived_tensor(window_of(bytes_of(bytes)), tensor.key);
      EXPECT_EQ(t.dtype, tensor.dtype);
      EXPECT_EQ(t.shape, chunk.sizes);
      ASSERT_LE(t.offset + t.bytes, bytes.size());
      EXPECT_EQ(crc32_of(bytes_of(bytes).subspan(t.offset, t.bytes)), t.crc);
      archives++;
    }
  }
  EXPECT_GT(archives, 100u);
}

TEST(TorchArchive, WhatIsWrittenReadsTheSame) {
  for (const auto& shape : std::vector<std::vector<int64_t>>{{}, {0}, {7}, {70000}, {2, 3, 4, 1, 5}}) {
    const auto n = static_cast<size_t>(*checked_numel(shape));
    std::string payload;
    for (size_t i = 0; i < 2 * n; i++) payload += static_cast<char>(i * 37);
    std::string out;
    const uint64_t length = write_archived_tensor(
        "BF16", shape, bytes_of(payload), [&](const void* p, size_t k) { out.append(static_cast<const char*>(p), k); });
    EXPECT_EQ(length, out.size());
    const ArchivedTensor t = read_archived_tensor(window_of(bytes_of(out)), "written");
    EXPECT_EQ(t.dtype, "BF16");
    EXPECT_EQ(t.shape, shape);
    EXPECT_EQ(t.offset % 64, 0u);
    EXPECT_EQ(out.substr(t.offset, t.bytes), payload);
    EXPECT_EQ(t.crc, crc32_of(bytes_of(payload)));
  }
}

TEST(TorchArchive, EveryTruncationAndEveryFlippedByteIsHandled) {
  std::string good;
  const std::string payload(24, 'x');
  write_archived_tensor("F32", std::vector<int64_t>{2, 3}, bytes_of(payload),
                        [&](const void* p, size_t k) { good.append(static_cast<const char*>(p), k); });
  const auto attempt = [](const std::string& bytes) {
    return error_of([&] { read_archived_tensor(window_of(bytes_of(bytes)), "a"); });
  };
  EXPECT_EQ(attempt(good), "");
  for (size_t n = 0; n < good.size(); n++) EXPECT_NE(attempt(good.substr(0, n)), "") << n;
  for (size_t i = 0; i < good.size(); i++) {
    for (const int flip : {1, 0x80, 0xff}) {
      std::string bytes = good;
      bytes[i] = static_cast<char>(bytes[i] ^ flip);
      attempt(bytes);
    }
  }
  EXPECT_NE(attempt(good + " "), "");
}

// The known attacks on unpicklers: nothing here may be taken, and nothing may crash.
TEST(Pickle, RefusesKnownAttacks) {
  using namespace std::string_literals;
  EXPECT_TRUE(contains(pickle_error("\x80\x02]K\x01K\x02s."s), "adds keys to a list"));  // SETITEM on a list
  EXPECT_TRUE(contains(pickle_error("\x80\x02K\x05K\x01K\x02s."s), "adds keys to an int"));
  EXPECT_TRUE(contains(pickle_error("\x80\x02](K\x01K\x02u."s), "adds keys to a list"));
  EXPECT_TRUE(contains(pickle_error("\x80\x02}(K\x01u."s), "key without a value"));
  EXPECT_TRUE(contains(pickle_error("\x80\x02}K\x01"s + "a."), "adds items to a dict"));
  EXPECT_TRUE(contains(pickle_error("\x80\x02K\x01)R."s), "is called"));
  EXPECT_TRUE(contains(pickle_error("\x80\x02r."s), "wanted"));
  EXPECT_TRUE(contains(pickle_error("\x80\x02Nr\xff\xff\xff\x7f."s), "memo place"));
  EXPECT_TRUE(contains(pickle_error("\x80\x02h\x05."s), "empty"));
  EXPECT_TRUE(contains(pickle_error("\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x7f."s), "text of"));
  EXPECT_TRUE(contains(pickle_error("\x80\x02X\xff\xff\xff\x00"s), "wanted"));
  EXPECT_TRUE(contains(pickle_error("\x80\x02\x8b\xff\xff\xff\xff."s), "negative"));
  EXPECT_TRUE(contains(pickle_error("\x80\x02"s + std::string(300, '(')), "nested marks"));
  EXPECT_TRUE(contains(pickle_error("\x80\x02."s), "empty stack"));
  EXPECT_TRUE(contains(pickle_error("\x80\x02(."s), "empty stack"));
  EXPECT_TRUE(contains(pickle_error("\x80\x02NN."s), "left over"));
  EXPECT_TRUE(contains(pickle_error("\x80\x02N.N"s), "follow its end"));
  EXPECT_TRUE(contains(pickle_error("\x80\x09N."s), "protocol"));
  EXPECT_TRUE(contains(pickle_error(""), "wanted"));
  for (const char op : "PioIFLSVgp\x82\x83\x84\x96\x97\x98"s) {
    EXPECT_NE(pickle_error("\x80\x02"s + op + "1\n."), "") << op;
  }
  // A list that holds itself is a graph like any other.
  const std::string cycle =
      "\x80\x02]q\x00h\x00"
      "a."s;
  EXPECT_EQ(pickle_error(cycle), "");
}

TEST(Pickle, ATensorMayNotNameACall) {
  using namespace std::string_literals;
  ZipBuilder zip("archive");
  std::string bytes = zip.add("data.pkl", "\x80\x02"s + "cposix\nsystem\nX\x04\x00\x00\x00true\x85R."s);
  bytes += zip.finish();
  EXPECT_TRUE(contains(error_of([&] { read_archived_tensor(window_of(bytes_of(bytes)), "a"); }), "posix.system"));
}

TEST(Pickle, DamagedIndexesNeverCrash) {
  const std::string good = read_file(golden + "/.metadata");
  uint64_t state = 1;
  for (int round = 0; round < 300; round++) {
    std::string bytes = good;
    for (int k = 0; k < 3; k++) {
      state = state * 6364136223846793005ull + 1442695040888963407ull;
      bytes[(state >> 33) % bytes.size()] = static_cast<char>(state >> 20);
    }
    error_of([&] { parse_dcp_metadata(bytes_of(bytes), "m"); });
  }
  for (size_t n = 0; n < good.size(); n += 97)
    EXPECT_NE(error_of([&] { parse_dcp_metadata(bytes_of(good.substr(0, n)), "m"); }), "") << n;
}

}  // namespace
}  // namespace furlong
