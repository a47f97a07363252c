// A disk that fails: the calls that change files are counted below one folder, and the one that is asked for fails.
#pragma once
#include <string>

namespace furlong {

enum class DiskFault {
  full,  // ENOSPC, of this call and all that follow
  io,    // EIO, of this call alone
  ends,  // the process ends before the call
  torn,  // a write writes half of its bytes, then the process ends; other calls: as ends
};

// The call numbered `call` (from 0) of those below `folder` fails so. -1: none does, they are only counted.
void fail_disk(const std::string& folder, int call, DiskFault fault);
// Every later call works. Returns how many calls there were.
int mend_disk();

}  // namespace furlong
