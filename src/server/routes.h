// The routes that generate and list, each from a request to its answer. They throw ApiError and ClientGone.
#pragma once
#include <atomic>
#include <mutex>

#include "server/connection.h"
#include "server/generation.h"
#include "server/metrics.h"

namespace furlong {

struct RouteContext {
  EngineLoop& loop;
  const ServedModel& model;
  ServerMetrics& metrics;
  double stuck_seconds = 60;
  std::atomic<int64_t> sequence{0};  // of requests
  std::mutex large = {};             // held by the one request of a large body that is being read into values

  // What `read` returns; with a large body when it has its turn, so that the memory of one bounds that of all.
  template <class F>
  auto in_turn(const HttpRequest& request, F&& read) {
    constexpr size_t large_body = 1 << 20;
    std::unique_lock lock(large, std::defer_lock);
    if (request.body.size() > large_body) lock.lock();
    return read();
  }
};

// OpenAI's /v1/chat/completions, /v1/completions, /v1/models and /v1/models/{id}.
void answer_chat(RouteContext&, const HttpRequest&, HttpReply&);
void answer_completions(RouteContext&, const HttpRequest&, HttpReply&);
void answer_models(RouteContext&, const HttpRequest&, HttpReply&);
// SGLang's /generate.
void answer_generate(RouteContext&, const HttpRequest&, HttpReply&);

}  // namespace furlong
