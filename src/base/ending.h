// SIGINT and SIGTERM as a wish that the program end, which long work asks for where it can end well.
#pragma once
#include "base/error.h"

namespace furlong {

// Exit codes of a run that was asked to end and has committed its state: 128 + SIGINT, 128 + SIGTERM.
inline constexpr Exit exit_interrupted{130}, exit_terminated{143};

// While one exists the first such signal is noted, and the second ends the process at once with 128 + its number.
// One at a time; what was set before comes back with its end.
class EndingSignals {
 public:
  EndingSignals();
  ~EndingSignals();
  EndingSignals(const EndingSignals&) = delete;
  EndingSignals& operator=(const EndingSignals&) = delete;
};

// The signal that came first since there was an EndingSignals; 0: none.
int ending_signal();

}  // namespace furlong
