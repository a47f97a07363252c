#include "server/metrics.h"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>

namespace furlong {
namespace {

void line(std::string& out, const char* type, const char* name, const char* help, int64_t value) {
  fmt::format_to(std::back_inserter(out), "# HELP furlong_{0} {1}\n# TYPE furlong_{0} {2}\nfurlong_{0} {3}\n", name,
                 help, type, value);
}

}  // namespace

void Histogram::add(double value) {
  counts_[static_cast<size_t>(std::lower_bound(bounds_.begin(), bounds_.end(), value) - bounds_.begin())]++;
  sum_ += value;
}

std::string Histogram::text(const std::string& name, const std::string& help) const {
  std::string out = fmt::format("# HELP {0} {1}\n# TYPE {0} histogram\n", name, help);
  int64_t count = 0;
  for (size_t i = 0; i < bounds_.size(); i++) {
    count += counts_[i];
    out += fmt::format("{}_bucket{{le=\"{}\"}} {}\n", name, bounds_[i], count);
  }
  count += counts_.back();
  return out + fmt::format("{0}_bucket{{le=\"+Inf\"}} {1}\n{0}_sum {2}\n{0}_count {1}\n", name, count, sum_);
}

void ServerMetrics::answered(const std::string& route, int status) {
  const std::lock_guard lock(mutex_);
  answers_[{route, status}]++;
}

void ServerMetrics::first_token(double seconds) {
  const std::lock_guard lock(mutex_);
  first_token_.add(seconds);
}

void ServerMetrics::finished(double seconds, int64_t tokens) {
  const std::lock_guard lock(mutex_);
  request_.add(seconds);
  tokens_.add(static_cast<double>(tokens));
}

std::string ServerMetrics::text(const LoopState& loop, const HttpCounts& http) const {
  std::string out;
  const auto counter = [&](const char* name, const char* help, int64_t value) {
    line(out, "counter", name, help, value);
  };
  const auto gauge = [&](const char* name, const char* help, int64_t value) { line(out, "gauge", name, help, value); };
  counter("steps_total", "Steps of the engine.", loop.steps);
  counter("generated_tokens_total", "Tokens drawn.", loop.tokens);
  counter("prompt_tokens_total", "Prompt tokens of requests handed to the engine.", loop.prompt_tokens);
  counter("cancelled_requests_total", "Requests whose client went away.", loop.cancelled);
  counter("preemptions_total", "Sequences that gave up their memory and were computed again.", loop.engine.preemptions);
  counter("shared_prompt_rows_total", "Rows of prompts taken from earlier sequences.", loop.engine.shared_rows);
  counter("drafted_tokens_total", "Tokens proposed by the MTP head.", loop.engine.drafted);
  counter("accepted_tokens_total", "Proposed tokens that the model drew too.", loop.engine.accepted);
  gauge("running_sequences", "Sequences in the engine.", loop.running);
  gauge("waiting_requests", "Requests in the queue.", loop.waiting);
  gauge("kv_pages", "Pages of keys and values.", loop.engine.pages);
  gauge("kv_pages_free", "Pages that no sequence holds.", loop.engine.free_pages);
  gauge("kv_pages_kept", "Pages that only hold beginnings of earlier sequences, until others need them.",
        loop.engine.kept_pages);
  gauge("state_slots", "Slots of recurrent state.", loop.engine.slots);
  gauge("state_slots_free", "Slots that no sequence holds.", loop.engine.free_slots);
  gauge("state_slots_kept", "Slots of the same.", loop.engine.kept_slots);
  gauge("connections", "Open connections.", http.connections);
  gauge("body_bytes", "Bytes of requests that are being read or parsed.", static_cast<int64_t>(http.body_bytes.load()));
  counter("connections_total", "Connections taken.", http.accepted);
  counter("connections_turned_away_total", "Connections refused for their number.", http.turned_away);
  out += fmt::format(
      "# HELP furlong_seconds_since_step Seconds since the last step of the engine, 0 while there is nothing to do.\n"
      "# TYPE furlong_seconds_since_step gauge\nfurlong_seconds_since_step {}\n",
      loop.busy ? loop.seconds : 0.0);
  const std::lock_guard lock(mutex_);
  out += "# HELP furlong_requests_total Requests answered; status 0: the client had gone.\n";
  out += "# TYPE furlong_requests_total counter\n";
  for (const auto& [key, count] : answers_) {
    out += fmt::format("furlong_requests_total{{route=\"{}\",status=\"{}\"}} {}\n", key.first, key.second, count);
  }
  out += first_token_.text("furlong_first_token_seconds", "From a request to its first token.");
  out += request_.text("furlong_request_seconds", "From a request to the end of its answer.");
  out += tokens_.text("furlong_request_tokens", "Tokens drawn for a request.");
  return out;
}

void GenerationTimer::drawn(size_t tokens) {
  if (tokens_ == 0 && tokens > 0) metrics_.first_token(seconds());
  tokens_ += static_cast<int64_t>(tokens);
}

void GenerationTimer::finished() { metrics_.finished(seconds(), tokens_); }

}  // namespace furlong
