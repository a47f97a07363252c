#include "tokenizer/split.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <algorithm>
#include <cctype>

#include "base/check.h"
#include "base/error.h"
#include "base/text.h"

namespace furlong {
namespace {

// Far beyond what a sound pattern needs on a megabyte of one character, and still only seconds.
constexpr uint32_t match_limit = 100'000'000;
constexpr uint32_t heap_limit_kib = 256 * 1024;

// Reads a pattern once, front to back, writing it in PCRE2's terms.
class Translator {
 public:
  Translator(std::string_view pattern, const std::string& where) : pattern_(pattern), where_(where) {}

  std::string run() {
    while (at_ < pattern_.size()) {
      const char c = pattern_[at_];
      switch (c) {
        case '\\': escape(); break;
        case '[': character_class(); break;
        case '(': group(); break;
        case '{': counted(); break;
        case '.':
        case '^':
        case '$': refuse(1); break;
        default: take(1); break;
      }
    }
    return std::move(out_);
  }

 private:
  bool sees(std::string_view text) const { return pattern_.substr(at_).starts_with(text); }
  void take(size_t n) {
    out_ += pattern_.substr(at_, n);
    at_ += n;
  }
  [[noreturn]] void refuse(size_t n) const {
    fail(Exit::input, "{}: the split pattern uses `{}` (byte {}), which is not supported; pattern: {}", where_,
         printable(pattern_.substr(at_, n)), at_, printable(pattern_, 200));
  }

  void escape() {
    const char c = at_ + 1 < pattern_.size() ? pattern_[at_ + 1] : '\0';
    if (c == 's' || c == 'S') {
      // PCRE2's own \s has U+180E as well, which is no white space since Unicode 6.3.
      out_ += c == 's' ? "\\p{White_Space}" : "\\P{White_Space}";
      at_ += 2;
    } else if (c == 'p' || c == 'P') {
      property();
    } else if (std::string_view("rntdD").find(c) != std::string_view::npos ||
               std::ispunct(static_cast<unsigned char>(c))) {
      take(2);
    } else {
      refuse(2);
    }
  }

  // \p{Lu}: general categories only, scripts mean different sets to the two engines.
  void property() {
    const size_t close = pattern_.find('}', at_);
    if (close == std::string_view::npos || !pattern_.substr(at_ + 2).starts_with('{')) refuse(3);
    std::string_view name = pattern_.substr(at_ + 3, close - at_ - 3);
    if (name.starts_with('^')) name.remove_prefix(1);
    constexpr std::string_view categories =
        " L Lu Ll Lt Lm Lo M Mn Mc Me N Nd Nl No P Pc Pd Ps Pe Pi Pf Po S Sm Sc Sk So Z Zs Zl Zp ";
    if (name.empty() || categories.find(fmt::format(" {} ", name)) == std::string_view::npos) refuse(close + 1 - at_);
    take(close + 1 - at_);
  }

  void character_class() {
    take(sees("[^") ? 2 : 1);
    if (sees("]")) refuse(1);
    while (!sees("]")) {
      if (at_ >= pattern_.size())
        fail(Exit::input, "{}: the split pattern has an unclosed `[`: {}", where_, printable(pattern_, 200));
      if (sees("[") || sees("&&")) refuse(sees("[") ? 1 : 2);
      if (pattern_[at_] == '\\') {
        escape();
      } else {
        take(1);
      }
    }
    take(1);
  }

  void group() {
    if (!sees("(?")) {
      if (sees("(*")) refuse(2);
      return take(1);
    }
    for (const std::string_view opening : {"(?:", "(?i:", "(?=", "(?!", "(?<=", "(?<!", "(?>"}) {
      if (sees(opening)) return take(opening.size());
    }
    refuse(3);
  }

  // {n}, {n,} and {n,m}; what follows them means different things to the two engines.
  void counted() {
    size_t end = at_ + 1;
    while (end < pattern_.size() && (std::isdigit(static_cast<unsigned char>(pattern_[end])) || pattern_[end] == ',')) {
      end++;
    }
    const std::string_view inner = pattern_.substr(at_ + 1, end - at_ - 1);
    if (end >= pattern_.size() || pattern_[end] != '}' || inner.empty() || inner.front() == ',' ||
        std::count(inner.begin(), inner.end(), ',') > 1) {
      refuse(end - at_);
    }
    take(end + 1 - at_);
    if (sees("+") || sees("?")) refuse(1);
  }

  std::string_view pattern_;
  const std::string& where_;
  size_t at_ = 0;
  std::string out_;
};

std::string reason_of(int code) {
  PCRE2_UCHAR buffer[256];
  pcre2_get_error_message(code, buffer, sizeof buffer);
  return reinterpret_cast<const char*>(buffer);
}

}  // namespace

struct SplitPattern::Compiled {
  std::string where;
  pcre2_code* code = nullptr;
  pcre2_match_context* context = nullptr;
  Compiled() = default;
  Compiled(const Compiled&) = delete;
  Compiled& operator=(const Compiled&) = delete;
  ~Compiled() {
    pcre2_match_context_free(context);
    pcre2_code_free(code);
  }
};

SplitPattern::SplitPattern(std::string_view pattern, const std::string& where) {
  if (pattern.size() > 10'000) fail(Exit::input, "{}: the split pattern has {} bytes", where, pattern.size());
  const std::string translated = Translator(pattern, where).run();
  auto compiled = std::make_shared<Compiled>();
  compiled->where = where;
  int code = 0;
  PCRE2_SIZE offset = 0;
  compiled->code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(),
                                 PCRE2_UTF | PCRE2_UCP | PCRE2_NO_AUTO_CAPTURE, &code, &offset, nullptr);
  if (compiled->code == nullptr) {
    fail(Exit::input, "{}: the split pattern is not valid ({}): {}", where, reason_of(code), printable(pattern, 200));
  }
  uint32_t matches_empty = 0;
  pcre2_pattern_info(compiled->code, PCRE2_INFO_MATCHEMPTY, &matches_empty);
  if (matches_empty != 0)
    fail(Exit::input, "{}: the split pattern can match the empty string: {}", where, printable(pattern, 200));
  pcre2_jit_compile(compiled->code,
                    PCRE2_JIT_COMPLETE);  // where there is no JIT the interpreter gives the same matches
  compiled->context = pcre2_match_context_create(nullptr);
  pcre2_set_match_limit(compiled->context, match_limit);
  pcre2_set_heap_limit(compiled->context, heap_limit_kib);
  compiled_ = std::move(compiled);
}

void SplitPattern::split(std::string_view text, std::vector<std::string_view>& pieces) const {
  split(text, [&](std::string_view piece) {
    pieces.push_back(piece);
    return true;
  });
}

bool SplitPattern::split(std::string_view text, const std::function<bool(std::string_view)>& take) const {
  struct Free {
    void operator()(pcre2_match_data* data) const { pcre2_match_data_free(data); }
  };
  const std::unique_ptr<pcre2_match_data, Free> data(pcre2_match_data_create(1, nullptr));
  const auto* subject = reinterpret_cast<PCRE2_SPTR>(text.data());
  size_t done = 0;
  while (done < text.size()) {
    const auto match = [&](uint32_t options) {
      return pcre2_match(compiled_->code, subject, text.size(), done, PCRE2_NO_UTF_CHECK | options, data.get(),
                         compiled_->context);
    };
    int found = match(0);
    if (found == PCRE2_ERROR_JIT_STACKLIMIT) found = match(PCRE2_NO_JIT);  // the interpreter's stack is on the heap
    if (found == PCRE2_ERROR_NOMATCH) break;
    if (found < 0) {
      fail(Exit::input, "{}: the split pattern failed at byte {} of a text of {} bytes ({})", compiled_->where, done,
           text.size(), reason_of(found));
    }
    const PCRE2_SIZE* range = pcre2_get_ovector_pointer(data.get());
    CHECK(range[0] >= done && range[1] > range[0], "match [{}, {}) after {}", range[0], range[1], done);
    if (range[0] > done && !take(text.substr(done, range[0] - done))) return false;
    if (!take(text.substr(range[0], range[1] - range[0]))) return false;
    done = range[1];
  }
  return done == text.size() || take(text.substr(done));
}

}  // namespace furlong
