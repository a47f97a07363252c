// torch_dist folders that are incomplete, damaged or hostile: each is refused with what and where, and nothing runs.
#include "checkpoint/pickle.h"
#include "checkpoint/torch_dist.h"
#include "checkpoint/zip.h"
#include "dist_maker.h"

namespace furlong::dist_folders {
namespace {

using namespace std::string_literals;
namespace fs = std::filesystem;

// A copy of the golden folder that a test may spoil.
class Copy {
 public:
  Copy() { fs::copy(golden_dist, path(), fs::copy_options::recursive); }
  std::string path() const { return scratch_ / "dist"; }
  std::string release(const std::string& name = "") const {
    return path() + "/release" + (name.empty() ? "" : "/" + name);
  }
  std::string error() const {
    return error_of([&] { read_dist(path()); });
  }
  // The error after one file got this content.
  std::string error_with(const std::string& name, const std::string& content) const {
    const std::string before = read_file(release(name));
    write_raw(release(name), content);
    const std::string text = error();
    write_raw(release(name), before);
    return text;
  }

 private:
  Scratch scratch_;
};

TEST(TorchDistFolder, IsFoundByTrackerOrByItself) {
  const Copy copy;
  EXPECT_EQ(copy.error(), "");
  EXPECT_EQ(read_dist(copy.path() + "/").size(), 145u);
  EXPECT_EQ(read_dist(copy.release()).size(), 145u);
  const std::string tracker = copy.path() + "/latest_checkpointed_iteration.txt";
  write_raw(tracker, " release\r\n");
  EXPECT_EQ(copy.error(), "");
  fs::rename(copy.release(), copy.path() + "/iter_0000120");
  EXPECT_TRUE(contains(copy.error(), "which is not there"));
  write_raw(tracker, "120\n");
  EXPECT_EQ(copy.error(), "");
  for (const char* bad : {"", "-1", "12x", "../release", "99999999999999999999", "release release"}) {
    write_raw(tracker, bad);
    EXPECT_TRUE(contains(copy.error(), "it must hold \"release\" or the number")) << bad << copy.error();
  }
  write_raw(tracker, std::string(5000, ' '));
  EXPECT_TRUE(contains(copy.error(), "more than such a file can have"));
  fs::remove(tracker);
  EXPECT_TRUE(contains(copy.error(), "neither latest_checkpointed_iteration.txt nor metadata.json is there"));
}

TEST(TorchDistFolder, TheTagMustBeMegatrons) {
  const Copy copy;
  EXPECT_TRUE(contains(copy.error_with("metadata.json", "{"), "metadata.json"));
  EXPECT_TRUE(contains(copy.error_with("metadata.json", "[]"), "no sharded_backend"));
  EXPECT_TRUE(contains(copy.error_with("metadata.json", R"({"sharded_backend": "zarr"})"), "\"zarr\"; only"));
  EXPECT_TRUE(contains(
      copy.error_with("metadata.json", R"({"sharded_backend": "torch_dist", "sharded_backend_version": 2})"), "is 2"));
  EXPECT_EQ(copy.error_with("metadata.json", R"({"sharded_backend": "torch_dist", "more": [1]})"), "");
  fs::remove(copy.release("metadata.json"));
  EXPECT_TRUE(contains(copy.error(), "metadata.json is missing: the checkpoint was not saved or copied to its end"));
}

TEST(TorchDistFolder, AnIncompleteCopyIsNamed) {
  {
    const Copy copy;
    fs::remove(copy.release(".metadata"));
    EXPECT_TRUE(contains(copy.error(), ".metadata is missing"));
  }
  {
    const Copy copy;
    fs::remove(copy.release("__1_0.distcp"));
    EXPECT_TRUE(contains(copy.error(), "__1_0.distcp, which is not there"));
  }
  {
    const Copy copy;
    fs::resize_file(copy.release("__0_1.distcp"), 300'000);
    EXPECT_TRUE(contains(copy.error(), "__0_1.distcp: it has 300000 bytes")) << copy.error();
  }
  {
    const Copy copy;
    fs::remove(copy.release("__0_0.distcp"));
    fs::create_directory(copy.release("__0_0.distcp"));
    EXPECT_TRUE(contains(copy.error(), "not a regular file"));
  }
  {
    const Copy copy;
    fs::remove(copy.release("__0_0.distcp"));
    ASSERT_EQ(mkfifo(copy.release("__0_0.distcp").c_str(), 0600), 0);
    EXPECT_TRUE(contains(copy.error(), "not a regular file"));  // and does not wait for a writer
  }
}

TEST(TorchDistFolder, EveryFlippedBitOfTheNumbersIsFound) {
  const Copy copy;
  const TorchDistFolder folder(copy.path());
  std::string bytes = read_file(copy.release("__1_1.distcp"));
  uint64_t state = 3;
  for (int round = 0; round < 40; round++) {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    const DcpTensor& t = folder.index().tensors[(state >> 33) % folder.index().tensors.size()];
    for (const auto& chunk : t.chunks) {
      if (folder.index().files[chunk.file] != "__1_1.distcp") continue;
      const std::string archive = bytes.substr(chunk.offset, chunk.length);
      const ArchivedTensor at = read_archived_tensor(window_of(bytes_of(archive)), "a");
      std::string spoilt = bytes;
      char& c = spoilt[chunk.offset + at.offset + (state >> 11) % at.bytes];
      c = static_cast<char>(c ^ (1 << (round % 8)));
      const std::string error = copy.error_with("__1_1.distcp", spoilt);
      EXPECT_TRUE(contains(error, "do not match their checksum") && contains(error, t.key)) << error;
    }
  }
}

TEST(TorchDistFolder, ArchivesMustBeWhatTheIndexSays) {
  const auto error_after = [](const std::function<void(DcpTensor&)>& edit) {
    const Scratch scratch;
    MadeTensors tensors = {{"a", {"BF16", {4, 2}, std::string(16, 'x')}}, {"b", {"F32", {8}, std::string(32, 'y')}}};
    write_dist(scratch.path(), tensors, nullptr, [&](DcpMetadata& index) {
      for (auto& t : index.tensors) edit(t);
    });
    return error_of([&] { read_dist(scratch.path()); });
  };
  EXPECT_EQ(error_after([](DcpTensor&) {}), "");
  EXPECT_TRUE(contains(error_after([](DcpTensor& t) { t.dtype = "F32"; }), "the index says F32[4,2]"));
  EXPECT_TRUE(contains(error_after([](DcpTensor& t) {
                         if (t.key == "a") t.shape = t.chunks[0].sizes = {2, 4};
                       }),
                       "holds BF16[4,2], but the index says BF16[2,4]"));
  EXPECT_TRUE(contains(error_after([](DcpTensor& t) { t.chunks[0].offset += 1; }), "the file is truncated"));
  EXPECT_TRUE(contains(error_after([](DcpTensor& t) { t.chunks[0].length -= 1; }), "archive of torch.save"));
  EXPECT_TRUE(contains(error_after([](DcpTensor& t) {
                         t.chunks[0].offset += 1;
                         t.chunks[0].length -= 1;
                       }),
                       "does not begin as an archive"));
  EXPECT_TRUE(contains(error_after([](DcpTensor& t) { t.chunks[0].length = UINT64_MAX / 2; }), "truncated"));
}

// What is known to have been tried on programs that read such files (reliability notes, B9). Each must end in an error
// that names the place, or be taken for the inert data that it is; a marker file would tell of anything that ran.
class Exploit : public ::testing::Test {
 protected:
  std::string marker() const { return scratch_ / "ran"; }
  // A call of os.system as pickles of old protocols spell it: posix system (touch MARKER) R.
  std::string call(bool global_by_stack = false) const {
    const std::string command = "touch " + marker();
    const std::string argument = "X"s + static_cast<char>(command.size()) + "\0\0\0"s + command + "\x85R";
    return (global_by_stack ? "\x8c\x05posix\x8c\x06system\x93"s : "cposix\nsystem\n"s) + argument;
  }
  std::string tensor_error(const std::string& pickle, const std::string& storage = std::string(8, 'x')) const {
    ZipBuilder zip("archive");
    const std::string bytes = [&] {
      std::string all = zip.add("data.pkl", pickle);
      all += zip.add("data/0", storage);
      return all + zip.finish();
    }();
    return archive_error(bytes);
  }
  static std::string archive_error(const std::string& bytes) {
    return error_of([&] { read_archived_tensor(window_of(bytes_of(bytes)), "a"); });
  }
  // data.pkl of a tensor: storage type, its numel, offset, size and stride as opcodes.
  static std::string tensor(const std::string& type, const std::string& numel, const std::string& offset,
                            const std::string& size, const std::string& stride) {
    return "\x80\x02"s + "ctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\n"s + type +
           "\nX\x01\0\0\0"
           "0X\x03\0\0\0"
           "cpu"s +
           numel + "tQ" + offset + size + stride +
           "\x89"
           "ccollections\nOrderedDict\n)RtR."s;
  }
  static std::string one(int value) { return "K"s + static_cast<char>(value); }
  static std::string tuple1(int value) { return one(value) + "\x85"; }
  void TearDown() override { EXPECT_FALSE(fs::exists(marker())); }
  Scratch scratch_;
};

TEST_F(Exploit, CallsInTheIndex) {
  const Copy copy;
  EXPECT_NE(copy.error_with(".metadata", "\x80\x02"s + call() + "."), "");
  EXPECT_NE(copy.error_with(".metadata", "\x80\x04"s + call(true) + "."), "");
  // A call whose result stands where a size, a file name or a key is wanted.
  const std::string good = read_file(copy.release(".metadata"));
  for (const std::string& wanted :
       std::vector<std::string>{"\x8c\x0drelative_path", "\x8c\x06offset", "\x8c\x06length"}) {
    const size_t at = good.find(wanted);
    ASSERT_NE(at, std::string::npos) << wanted;
    // The key's MEMOIZE follows it; then comes the value.
    const size_t value = at + wanted.size() + 1;
    EXPECT_NE(copy.error_with(".metadata", good.substr(0, value) + call(true) + good.substr(value)), "") << wanted;
  }
  // In what is left alone it is data: planner_data of a call, over an otherwise empty index.
  const std::string module = "torch.distributed.checkpoint.metadata\n";
  const std::string empty = "\x80\x02"s + "c" + module + "Metadata\n)\x81}(X\x13\0\0\0state_dict_metadata}"s +
                            "X\x0c\0\0\0storage_data}X\x0c\0\0\0planner_data"s + call() + "ub.";
  EXPECT_EQ(error_of([&] { parse_dcp_metadata(bytes_of(empty), "m"); }), "");
}

TEST_F(Exploit, CommonIsNeverOpened) {
  const Copy copy;
  EXPECT_EQ(copy.error_with("common.pt", "\x80\x02"s + call() + "."), "");
  fs::remove(copy.release("common.pt"));
  EXPECT_EQ(copy.error(), "");
}

TEST_F(Exploit, CallsInATensor) {
  const std::string good = tensor("FloatStorage", one(2), one(0), tuple1(2), tuple1(1));
  EXPECT_EQ(tensor_error(good), "");
  EXPECT_TRUE(contains(tensor_error("\x80\x02"s + call() + "."), "posix.system"));
  // A tensor with a call on the side: popped, in its hooks, in its storage's key.
  EXPECT_TRUE(contains(tensor_error("\x80\x02"s + call() + "0" + good.substr(2)), "posix.system"));
  const std::string hooks = "ccollections\nOrderedDict\n)R";
  std::string spoilt = good;
  EXPECT_TRUE(contains(tensor_error(spoilt.replace(spoilt.find(hooks), hooks.size(), call())), "posix.system"));
  for (const char* name : {"builtins\neval", "builtins\ngetattr", "torch\nload", "torch.hub\nload", "numpy\nload",
                           "torch._dynamo.guards\nGuardBuilder.get", "torch.serialization\n_get_layout",
                           "__builtin__\nexec", "torch\nSize\r"}) {
    const std::string pickle = "\x80\x02"s + "c" + name + "\n)R.";
    EXPECT_TRUE(contains(tensor_error(pickle), "which no tensor needs")) << name << tensor_error(pickle);
  }
}

// CVE-2026-24747: keys set on what is no dict, and storages of another size than they say.
TEST_F(Exploit, KeysSetOnNumbersAndStoragesThatLie) {
  for (const std::string& target :
       std::vector<std::string>{"K\x05", "]", ")", "X\x01\0\0\0a"s, "G\0\0\0\0\0\0\0\0"s, "N"}) {
    EXPECT_NE(tensor_error("\x80\x02"s + target + "K\x01K\x02s."), "") << target;
    EXPECT_NE(tensor_error("\x80\x02"s + target + "(K\x01K\x02u."), "") << target;
  }
  const auto lies = [&](const std::string& type, const std::string& numel, const std::string& offset,
                        const std::string& size, const std::string& stride, const char* why) {
    const std::string error = tensor_error(tensor(type, numel, offset, size, stride));
    EXPECT_TRUE(contains(error, why)) << why << ": " << error;
  };
  lies("FloatStorage", one(3), one(0), tuple1(3), tuple1(1), "3 numbers in 8 bytes");
  lies("DoubleStorage", one(2), one(0), tuple1(2), tuple1(1), "2 numbers in 8 bytes");
  lies("FloatStorage", one(2), one(1), tuple1(2), tuple1(1), "reaches out of its storage");
  lies("FloatStorage", one(2), one(0), tuple1(3), tuple1(1), "reaches out of its storage");
  lies("FloatStorage", one(2), one(0), tuple1(2), tuple1(0), "not contiguous");
  lies("FloatStorage", one(2), one(0), tuple1(2), "J\xff\xff\xff\xff\x85", "where a size is wanted");
  lies("FloatStorage", one(2), "J\xff\xff\xff\xff", tuple1(2), tuple1(1), "where a size is wanted");
  lies("FloatStorage", one(2), "\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f", tuple1(2), tuple1(1), "reaches out");
  const std::string huge = "\x8a\x08\0\0\0\0\0\0\0\x40"s;
  lies("FloatStorage", one(2), one(0), huge + huge + "\x86", tuple1(1) + tuple1(1) + "0", "");
  lies("FloatStorage", one(2), one(0), huge + "\x85", tuple1(1), "overflows");
  lies("QInt8Storage", one(2), one(0), tuple1(2), tuple1(1), "which no tensor needs");
}

// CVE-2025-32434 went through a second format that the checks did not see.
TEST_F(Exploit, OtherFormatsOfTorchLoad) {
  std::string tar = "pax_global_header"s + std::string(495, '\0');
  tar.replace(257, 5, "ustar");
  EXPECT_TRUE(contains(archive_error(tar), "does not begin as an archive"));
  EXPECT_TRUE(contains(archive_error("\x80\x02\x8a\nl\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."s), "does not begin"));
  EXPECT_TRUE(contains(archive_error("\x80\x02"s + call() + "."), "does not begin as an archive"));
  // A good archive behind a pickle, or with one behind it: what one reader takes, another might run.
  ZipBuilder zip("archive");
  std::string good = zip.add("data.pkl", tensor("FloatStorage", one(2), one(0), tuple1(2), tuple1(1)));
  good += zip.add("data/0", std::string(8, 'x'));
  good += zip.finish();
  EXPECT_EQ(archive_error(good), "");
  EXPECT_NE(archive_error("\x80\x02"s + call() + "." + good), "");
  EXPECT_NE(archive_error(good + "\x80\x02"s + call() + "."), "");
  EXPECT_NE(archive_error(good + good), "");
  // Formats of other years.
  for (const char* version : {"1\n", "11\n", "", "x", "3"}) {
    ZipBuilder other("archive");
    std::string bytes = other.add("data.pkl", tensor("FloatStorage", one(2), one(0), tuple1(2), tuple1(1)));
    bytes += other.add("data/0", std::string(8, 'x'));
    bytes += other.add("version", version);
    bytes += other.finish();
    EXPECT_EQ(contains(archive_error(bytes), "its version is"), version != "3"s) << version;
  }
  // TorchScript and other content of the same container.
  ZipBuilder script("archive");
  std::string code = script.add("constants.pkl", "\x80\x02).");
  code += script.add("code/__torch__.py", "x");
  code += script.finish();
  EXPECT_TRUE(contains(archive_error(code), "without data.pkl"));
}

TEST_F(Exploit, ZipsOfTwoMeanings) {
  const std::string pickle = tensor("FloatStorage", one(2), one(0), tuple1(2), tuple1(1));
  const auto build = [&](const std::vector<std::pair<std::string, std::string>>& entries) {
    ZipBuilder zip("archive");
    std::string out;
    for (const auto& [name, content] : entries) out += zip.add(name, content);
    return out + zip.finish();
  };
  const std::string numbers(8, 'x'), evil = "\x80\x02"s + call() + ".";
  EXPECT_EQ(archive_error(build({{"data.pkl", pickle}, {"data/0", numbers}})), "");
  EXPECT_TRUE(contains(archive_error(build({{"data.pkl", pickle}, {"data.pkl", evil}, {"data/0", numbers}})),
                       "two entries of one name"));
  EXPECT_NE(archive_error(build({{"data.pkl", pickle}, {"data/0", numbers}, {"data/0", numbers}})), "");
  const std::string good = build({{"data.pkl", pickle}, {"data/0", numbers}});
  const auto spoilt = [&](const std::string& what, size_t nth, size_t plus, char value) {
    std::string bytes = good;
    size_t at = bytes.find(what);
    for (; nth > 0; nth--) at = bytes.find(what, at + 1);
    bytes[at + plus] = value;
    return archive_error(bytes);
  };
  const std::string central = "PK\x01\x02", local = "PK\x03\x04";
  EXPECT_NE(spoilt(central, 0, 10, 8), "");    // deflated, says the directory
  EXPECT_NE(spoilt(local, 0, 8, 8), "");       // deflated, says the header
  EXPECT_NE(spoilt(central, 0, 8, 1), "");     // encrypted
  EXPECT_NE(spoilt(central, 0, 46, 'b'), "");  // another name than the header's
  EXPECT_NE(spoilt(local, 1, 30, 'b'), "");
  EXPECT_NE(spoilt(central, 1, 42, 0), "");       // two entries over the same bytes
  EXPECT_NE(spoilt(central, 1, 24, 9), "");       // more than is stored
  EXPECT_NE(spoilt("PK\x05\x06", 0, 20, 1), "");  // a comment
  EXPECT_NE(spoilt("PK\x05\x06", 0, 10, 9), "");  // more entries than there are
}

// Small files that would grow large: shared lists, deep nesting, lengths that are not there.
TEST_F(Exploit, SmallFilesThatWouldGrow) {
  std::string laughs = "\x80\x02]q\0"s;
  for (int i = 0; i < 60; i++)
    laughs += "]r"s + static_cast<char>(i + 1) + "\0\0\0("s +
              [&] {
                std::string ten;
                for (int k = 0; k < 10; k++) ten += "h"s + static_cast<char>(i);
                return ten;
              }() +
              "e0h"s + static_cast<char>(i + 1) + "0";
  // Each list holds ten times the one before; as a graph that is 60 short lists.
  EXPECT_EQ(error_of([&] { EXPECT_LT(pickle::parse(bytes_of(laughs + "."), "p").size(), 200u); }), "");
  EXPECT_NE(error_of([&] { parse_dcp_metadata(bytes_of(laughs + "."), "m"); }), "");
  const std::string marks = "\x80\x02"s + std::string(100'000, '(') + ".";
  EXPECT_TRUE(contains(error_of([&] { pickle::parse(bytes_of(marks), "p"); }), "nested marks"));
  const std::string nested = "\x80\x02)"s + std::string(100'000, '\x85') + ".";
  EXPECT_EQ(error_of([&] { pickle::parse(bytes_of(nested), "p"); }), "");
  EXPECT_NE(error_of([&] { parse_dcp_metadata(bytes_of(nested), "m"); }), "");
  for (const std::string& claim :
       std::vector<std::string>{"X\xff\xff\xff\xff", "\x8d\xff\xff\xff\xff\xff\xff\xff\x7f", "B\xff\xff\xff\x7f",
                                "\x8e\xff\xff\xff\xff\xff\xff\xff\xff", "\x8b\xff\xff\xff\x7f", "r\xff\xff\xff\x7f"}) {
    EXPECT_NE(error_of([&] { pickle::parse(bytes_of("\x80\x04"s + claim + "."), "p"); }), "") << claim.size();
  }
}

TEST(TorchDistFolder, KindsAreToldApart) {
  const Scratch scratch;
  EXPECT_EQ(checkpoint_kind(tiny), CheckpointKind::hf);
  EXPECT_EQ(checkpoint_kind(golden_dist), CheckpointKind::torch_dist);
  EXPECT_EQ(checkpoint_kind(golden_dist + "/release"), CheckpointKind::torch_dist);
  EXPECT_EQ(checkpoint_kind(scratch / "nowhere"), CheckpointKind::none);
  EXPECT_EQ(checkpoint_kind(scratch.path()), CheckpointKind::none);
  make_directories(scratch / "iter_0000001");
  write_raw(scratch / "latest_checkpointed_iteration.txt", "1");
  EXPECT_EQ(checkpoint_kind(scratch.path()), CheckpointKind::torch_dist);
  write_raw(scratch / "iter_0000001/manifest.json", "{}");
  EXPECT_EQ(checkpoint_kind(scratch.path()), CheckpointKind::furlong);
}

}  // namespace
}  // namespace furlong::dist_folders
