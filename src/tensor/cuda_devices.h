// Which of a host's devices a rank uses.
#pragma once

namespace furlong::cuda {

// How many devices this process sees; 0 without a driver.
int device_count();
// Of the local_rank-th rank of a host that sees `count`: the only one where its launcher shows it no other, else that
// of its number.
int device_of(int local_rank, int count);

}  // namespace furlong::cuda
