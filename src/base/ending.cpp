#include "base/ending.h"

#include <unistd.h>

#include <array>
#include <csignal>
#include <string_view>

namespace furlong {
namespace {

constexpr std::array<int, 2> ending_numbers = {SIGINT, SIGTERM};

// A handler has nothing else to put its news into.
volatile std::sig_atomic_t noted = 0;
std::array<struct sigaction, 2> before{};

void note(int number) {
  if (noted != 0) _exit(128 + number);
  noted = number;
  constexpr std::string_view said = "\nending at the next good moment; once more ends at once\n";
  [[maybe_unused]] const auto n = write(STDERR_FILENO, said.data(), said.size());
}

}  // namespace

EndingSignals::EndingSignals() {
  noted = 0;
  struct sigaction action {};
  action.sa_handler = note;
  action.sa_flags = SA_RESTART;
  sigemptyset(&action.sa_mask);
  for (size_t i = 0; i < ending_numbers.size(); i++) sigaction(ending_numbers[i], &action, &before[i]);
}

EndingSignals::~EndingSignals() {
  for (size_t i = 0; i < ending_numbers.size(); i++) sigaction(ending_numbers[i], &before[i], nullptr);
  noted = 0;
}

int ending_signal() { return noted; }

}  // namespace furlong
