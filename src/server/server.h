// `furlong serve`: OpenAI's API and SGLang's /generate over one engine.
#pragma once
#include <functional>
#include <memory>
#include <string>

#include "server/access.h"
#include "server/http.h"
#include "server/routes.h"

namespace furlong {

struct ServerOptions {
  std::string host = "127.0.0.1";
  int port = 8000;      // 0: any that is free
  std::string api_key;  // empty: none is asked for, which needs a host on loopback
  HttpLimits limits;
  EngineLoop::Options queue;
  double stuck_seconds = 60;  // of a step, after which /health says 503
};

// Throws Error(Exit::usage) for a key that is too short, a host beyond loopback without a key, a host that is not this
// machine's, and in a build without the server; Error(Exit::resources) for a port that is taken.
void check_server_options(const ServerOptions&);

// Listens from its construction on. The engine is used by a thread of the server's own.
class Server {
 public:
  Server(const ServerOptions&, ServedModel, EngineCalls);
  ~Server();
  int port() const { return listener_.port(); }
  // Called, by any thread, when the engine has failed; why() then says how.
  void on_failure(std::function<void()> call);
  // Takes no further requests; those at work have `seconds` to end. Whether all did.
  bool drain(double seconds);
  // Null, or what a step of the engine has thrown.
  std::exception_ptr failure() const;
  std::string metrics_text() const;

 private:
  void admit(const HttpRequest&) const;
  void handle(const HttpRequest&, HttpReply&);
  void answer_health(HttpReply&) const;
  void engine_failed(std::exception_ptr why);

  ServerOptions options_;
  AccessRules access_;
  ServedModel model_;
  ServerMetrics metrics_;
  mutable std::mutex mutex_;
  std::exception_ptr failure_;
  std::function<void()> on_failure_;
  std::atomic<bool> draining_{false};
  EngineLoop loop_;
  RouteContext routes_;
  HttpListener listener_;
};

}  // namespace furlong
