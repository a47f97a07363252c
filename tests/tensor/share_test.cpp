// A block that several users occupy in turn.
#include <gtest/gtest.h>

#include <cstring>

#include "base/error.h"
#include "tensor/buffer.h"

namespace furlong {
namespace {

TEST(Share, PartsKeepTheirAddressesAndTheBlock) {
  Share part;
  {
    const Share block = Share::block(1000, Device::cpu);
    part = block.part(100, 200).part(50, 100);
    EXPECT_EQ(static_cast<uint8_t*>(part.data()) - static_cast<uint8_t*>(block.data()), 150);
    EXPECT_EQ(static_cast<const uint8_t*>(block.data())[999], 0);
  }
  std::memset(part.data(), 7, part.bytes());  // the block lives on
  EXPECT_EQ(part.bytes(), 100u);
  EXPECT_EQ(part.device(), Device::cpu);
  EXPECT_FALSE(Share().defined());
}

TEST(Share, WhoeverComesBackLearnsWhetherOthersWereThere) {
  const Share block = Share::block(1024, Device::cpu);
  const Share a = block.part(0, 600), b = block.part(500, 500), apart = block.part(0, 100);
  EXPECT_FALSE(a.enter());
  EXPECT_FALSE(a.enter());
  EXPECT_TRUE(b.enter()) << "the first use of b, after a";
  EXPECT_FALSE(b.enter());
  EXPECT_TRUE(a.enter());
  EXPECT_TRUE(b.part(200, 300).enter()) << "its first use, after b";
  EXPECT_TRUE(b.enter()) << "a, and a part of b";
  EXPECT_TRUE(apart.enter());
  EXPECT_FALSE(b.enter()) << "apart does not touch b";
}

TEST(Share, AnArenaInAPart) {
  const Share block = Share::block(1024, Device::cpu);
  Arena arena(block.part(128, 256));
  EXPECT_EQ(arena.capacity(), 256u);
  EXPECT_EQ(arena.take("first", 64), static_cast<uint8_t*>(block.data()) + 128);
  EXPECT_EQ(arena.take("second", 100), static_cast<uint8_t*>(block.data()) + 192);
  EXPECT_THROW(arena.take("third", 65), Error);
}

TEST(Arena, TellsWhoHeldWhatAtTheHighMark) {
  Arena arena = Arena::measuring();
  arena.take("kept", 100);
  {
    const Arena::Scope scope(arena);
    arena.take("a", 640);
    arena.take("a", 64);
  }
  arena.take("b", 64);
  EXPECT_EQ(arena.high_mark(), 128u + 704u);
  const std::map<std::string, size_t, std::less<>> wanted = {{"kept", 128}, {"a", 704}};
  EXPECT_EQ(arena.at_high_mark(), wanted);
}

}  // namespace
}  // namespace furlong
