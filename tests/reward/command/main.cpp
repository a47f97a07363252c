// A reward command that does what the response tells it to: "7" is answered with 7; other words are faults.
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <iostream>
#include <nlohmann/json.hpp>
#include <string>

namespace {

using Json = nlohmann::json;

void say(const std::string& line) { std::cout << line << '\n' << std::flush; }

std::string mode;

Json answer(const Json& sample) {
  const std::string response = sample["response"];
  if (mode == "boxed") {
    const size_t at = response.find("\\boxed{");
    return at == std::string::npos ? 0 : response[at + 7] - '0';
  }
  if (response == "null") return nullptr;
  if (response == "text") return "seven";
  return std::stod(response);
}

void linger(bool with_child) {
  signal(SIGTERM, SIG_IGN);
  if (with_child && fork() == 0) setsid();  // even one that leaves the group and keeps the pipes
  for (;;) pause();
}

}  // namespace

int main(int argc, char** argv) {
  std::cerr << "ready" << std::endl;
  if (argc > 1) mode = argv[1];
  for (std::string line; std::getline(std::cin, line);) {
    const Json question = Json::parse(line);
    Json out = {{"id", question["id"]}};
    if (question.contains("samples")) {
      out["rewards"] = Json::array();
      for (const Json& sample : question["samples"]) out["rewards"].push_back(answer(sample));
      // Told so, one too few.
      if (mode == "short") out["rewards"].erase(0);
      say(out.dump());
      continue;
    }
    const std::string response = question["response"];
    if (mode == "converse") {  // asks twice for more, then scores by the number of messages and the last digit
      const int turn = question["turn"];
      if (turn < 3) {
        out["messages"] = {{{"role", turn == 1 ? "user" : "tool"}, {"content", "And then?"}}};
      } else {
        out["done"] = true;
        const size_t at = response.find("\\boxed{");
        if (at != std::string::npos) out["reward"] = 10 * question["messages"].size() + (response[at + 7] - '0');
        if (at == std::string::npos) out["reward"] = nullptr;
      }
      say(out.dump());
      continue;
    }
    if (response == "hang") linger(false);
    if (response == "exit") return 3;
    if (response == "die") raise(SIGKILL);
    if (response == "junk") say("{\"id\": ");
    if (response == "chatter") say("loading the model...");
    if (response == "other") out["id"] = 1 << 30;
    if (response == "twice") say(out.dump());  // an answer without a reward, and then one more
    if (response == "endless") {
      for (;;) std::cout << std::string(1 << 16, 'x');
    }
    if (response == "fork") {
      if (fork() == 0) linger(false);
    }
    if (response == "error") {
      out["reward"] = nullptr;
      out["error"] = "no judge today";
    } else if (mode == "boxed" || response.find_first_not_of("0123456789.-") == std::string::npos ||
               response == "null") {
      out["reward"] = answer(question);
    } else if (response == "keys") {
      out["reward"] = {{"score", 0.5}, {"other", 1}};
    }
    say(out.dump());
  }
  return 0;
}
