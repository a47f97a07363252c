#include <mutex>
#include <optional>

#include "base/check.h"
#include "base/error.h"
#include "base/json.h"
#include "base/subprocess.h"
#include "base/text.h"
#include "reward/channel.h"

namespace furlong {
namespace {

class CommandChannel : public Channel {
 public:
  CommandChannel(std::string command, std::string stderr_path, size_t most_bytes)
      : command_(std::move(command)), stderr_path_(std::move(stderr_path)), most_bytes_(most_bytes) {}

  Reply ask(const std::string& body, uint64_t id, Time deadline) override {
    CHECK(body.size() > 1 && body.front() == '{', "a question that is no object");
    try {
      const std::lock_guard lock(mutex_);
      // One that has ended, or speaks unasked, would spoil the next answer.
      if (process_ && process_->has_spoken()) process_.reset();
      if (!process_) process_.emplace(command_, stderr_path_);
    } catch (const Error& e) {
      return {.text = {}, .error = e.what(), .again = false, .unreachable = true};
    }
    const std::string line =
        fmt::format("{{\"id\":{}{}{}", id, body == "{}" ? "" : ",", std::string_view(body).substr(1));
    const auto sent = process_->write_line(line, deadline);
    if (sent != Subprocess::Outcome::done) return give_up(complaint(sent, "to take its question"));
    std::string answer;
    for (bool late = true; late;) {
      const auto got = process_->read_line(answer, deadline, most_bytes_);
      if (got != Subprocess::Outcome::done) return give_up(complaint(got, "to answer"));
      if (const std::string wrong = problem(answer, id, late); !wrong.empty()) return give_up(wrong);
    }
    return {.text = std::move(answer), .error = {}};
  }

  // Ending is left to ask(), which then sees the pipe closed.
  void interrupt() override {
    const std::lock_guard lock(mutex_);
    if (process_) process_->kill_group();
  }

 private:
  Reply give_up(const std::string& why) {
    const std::lock_guard lock(mutex_);
    process_->end();
    process_.reset();
    const std::string errors = stderr_path_.empty() ? "" : "; its standard error is in " + stderr_path_;
    return {.text = {}, .error = fmt::format("`{}` {}{}", printable(command_), why, errors)};
  }

  std::string complaint(Subprocess::Outcome outcome, const char* what) {
    switch (outcome) {
      case Subprocess::Outcome::late: return fmt::format("took too long {} and was killed", what);
      case Subprocess::Outcome::too_long:
        return fmt::format("wrote a line of more than {} and was killed", human_bytes(most_bytes_));
      default: break;
    }
    const std::lock_guard lock(mutex_);
    return fmt::format("ended when it had {} ({})", what, process_->end());
  }

  // late: it is one more answer to an earlier question, and ours is still to come.
  static std::string problem(const std::string& answer, uint64_t id, bool& late) {
    try {
      const Json json = parse_json(answer, "its answer");
      if (!json.is_object() || !json.contains("id")) {
        return "wrote a line that is no answer and was killed: " + printable(answer);
      }
      const Json& given = json["id"];
      late = given.is_number_unsigned() && given.get<uint64_t>() < id;
      if (late || given == id) return "";
      return fmt::format("answered with \"id\" {} for {} and was killed", printable(json["id"].dump()), id);
    } catch (const Error& e) {
      return fmt::format("wrote a line that is no answer and was killed: {}", e.what());
    }
  }

  std::string command_, stderr_path_;
  std::mutex mutex_;  // of the process's start and end
  size_t most_bytes_;
  std::optional<Subprocess> process_;
};

}  // namespace

std::unique_ptr<Channel> command_channel(const std::string& command, const std::string& stderr_path,
                                         size_t most_bytes) {
  return std::make_unique<CommandChannel>(command, stderr_path, most_bytes);
}

}  // namespace furlong
