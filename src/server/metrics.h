// What /metrics tells: counts, gauges and histograms in Prometheus' text form.
#pragma once
#include <chrono>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "server/engine_loop.h"
#include "server/listener.h"

namespace furlong {

// Values in cells of given upper bounds. Not for several threads at once.
class Histogram {
 public:
  explicit Histogram(std::vector<double> bounds) : bounds_(std::move(bounds)), counts_(bounds_.size() + 1) {}
  void add(double value);
  // name_bucket{le="0.1"} 3 ... name_sum, name_count, with a help line before.
  std::string text(const std::string& name, const std::string& help) const;

 private:
  std::vector<double> bounds_;
  std::vector<int64_t> counts_;
  double sum_ = 0;
};

class ServerMetrics {
 public:
  // route: one of a fixed set; status 0: the client had gone.
  void answered(const std::string& route, int status);
  void first_token(double seconds);
  void finished(double seconds, int64_t tokens);
  std::string text(const LoopState&, const HttpCounts&) const;

 private:
  mutable std::mutex mutex_;
  std::map<std::pair<std::string, int>, int64_t> answers_;
  Histogram first_token_{{0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60}};
  Histogram request_{{0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600}};
  Histogram tokens_{{1, 4, 16, 64, 256, 1024, 4096, 16384, 65536}};
};

// The times of one call.
class GenerationTimer {
 public:
  explicit GenerationTimer(ServerMetrics& metrics) : metrics_(metrics), start_(SteadyClock::now()) {}
  void drawn(size_t tokens);
  void finished();
  double seconds() const { return std::chrono::duration<double>(SteadyClock::now() - start_).count(); }

 private:
  ServerMetrics& metrics_;
  SteadyClock::time_point start_;
  int64_t tokens_ = 0;
};

}  // namespace furlong
