#include "machine.h"

#include "plan/ceilings.h"

namespace furlong::bench {

Limits measure_limits(ThreadPool& threads) {
  const Ceilings ceilings = measure_ceilings(threads, BenchClock::wall);
  return {.flops = ceilings.fp32, .bytes = ceilings.memory};
}

}  // namespace furlong::bench
