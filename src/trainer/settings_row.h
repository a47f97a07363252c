// How a row of the table of settings is written down (settings_fields*.cpp alone).
#pragma once
#include "trainer/settings.h"

namespace furlong::setting {

constexpr unsigned bit(Command command) { return static_cast<unsigned>(command); }
constexpr unsigned T = bit(Command::train), S = bit(Command::sft), E = bit(Command::eval), G = bit(Command::generate),
                   L = bit(Command::score), K = bit(Command::tokenize), R = bit(Command::grade), I = bit(Command::init),
                   V = bit(Command::convert), X = bit(Command::inspect), Z = bit(Command::serve),
                   B = bit(Command::bench);
constexpr unsigned model_commands = T | S | E | G | L | Z, all = model_commands | K | R | I | V | B;

inline Kind kind_of(const Member& member) {
  struct Visitor {
    Kind operator()(std::monostate) const { return Kind::words; }
    Kind operator()(bool Settings::*) const { return Kind::flag; }
    Kind operator()(int64_t Settings::*) const { return Kind::integer; }
    Kind operator()(std::optional<int64_t> Settings::*) const { return Kind::integer; }
    Kind operator()(double Settings::*) const { return Kind::real; }
    Kind operator()(std::optional<double> Settings::*) const { return Kind::real; }
    Kind operator()(std::string Settings::*) const { return Kind::text; }
    Kind operator()(Texts Settings::*) const { return Kind::texts; }
    Kind operator()(Integers Settings::*) const { return Kind::integers; }
  };
  return std::visit(Visitor{}, member);
}

// One row being written down; the calls chain.
class Row {
 public:
  Row(Topic topic, const char* name, Member member, unsigned commands, const char* help)
      : field_{name, topic, commands, kind_of(member), member, help} {}
  Row& unit(const char* text) { return field_.unit = text, *this; }
  Row& from(double min) { return field_.min = min, *this; }
  Row& above(double min) { return field_.min = min, field_.above_min = true, *this; }
  Row& to(double max) { return field_.max = max, *this; }
  Row& below(double max) { return field_.max = max, field_.below_max = true, *this; }
  Row& choices(Texts texts) { return field_.choices = std::move(texts), *this; }
  Row& json() { return field_.kind = Kind::json, *this; }
  Row& differs(const char* text) { return field_.differs = text, *this; }
  Row& later(Texts allowed) { return field_.later = true, field_.allowed = std::move(allowed), *this; }
  Row& no_effect(const char* why) { return field_.no_effect = why, *this; }
  operator Field() const { return field_; }

 private:
  Field field_;
};

using Table = std::vector<Field>;

void add_algorithm(Table& table);  // settings_algorithm.cpp
void add_training(
    Table& table);  // MTP training, optimizer, ranks, tools, and the former (settings_fields_training.cpp)
void add_observing(Table& table);       // what a run shows of itself (settings_observing.cpp)
void add_without_effect(Table& table);  // miles' flags that change nothing here (settings_no_effect.cpp)

}  // namespace furlong::setting
