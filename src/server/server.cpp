#include "server/server.h"

#include <array>

#include "base/error.h"
#include "base/json.h"
#include "base/text.h"
#include "server/api_error.h"
#include "server/fields.h"

namespace furlong {
namespace {

using RouteFunction = void (*)(RouteContext&, const HttpRequest&, HttpReply&);

struct Route {
  std::string_view method, path;
  RouteFunction answer;  // null: the server's own
};

constexpr std::array<Route, 6> routes{{
    {"POST", "/v1/chat/completions", answer_chat},
    {"POST", "/v1/completions", answer_completions},
    {"POST", "/generate", answer_generate},
    {"GET", "/v1/models", answer_models},
    {"GET", "/health", nullptr},
    {"GET", "/metrics", nullptr},
}};

// Null: there is no such path.
const Route* route_of(std::string_view path) {
  if (path.starts_with("/v1/models/")) path = "/v1/models";
  for (const Route& route : routes) {
    if (route.path == path) return &route;
  }
  return nullptr;
}

}  // namespace

void check_server_options(const ServerOptions& options) {
  HttpParser probe(options.limits);  // says so if this build has none
  if (!options.api_key.empty() && options.api_key.size() < least_key_bytes) {
    fail(Exit::usage, "--api-key: a key of {} bytes can be guessed; use at least {}", options.api_key.size(),
         least_key_bytes);
  }
  if (!probe_address(options.host, options.port) && options.api_key.empty()) {
    fail(Exit::usage,
         "--host {}: beyond this machine the server answers only to those who know its key; give --api-key-file FILE "
         "(or "
         "--api-key), at least {} bytes",
         printable(options.host), least_key_bytes);
  }
}

Server::Server(const ServerOptions& options, ServedModel model, EngineCalls engine)
    : options_((check_server_options(options), options)),
      model_(std::move(model)),
      loop_(std::move(engine), options.queue, [this](std::exception_ptr why) { engine_failed(std::move(why)); }),
      routes_{loop_, model_, metrics_, options.stuck_seconds},
      listener_(options.host, options.port, options.limits,
                {.admit = [this](const HttpRequest& request) { admit(request); },
                 .handle = [this](const HttpRequest& request, HttpReply& reply) { handle(request, reply); },
                 .answered =
                     [this](const HttpRequest& request, int status) {
                       const Route* route = route_of(request.path());
                       metrics_.answered(route == nullptr ? "other" : std::string(route->path), status);
                     }}) {
  access_ = {options.api_key, listener_.loopback()};
  listener_.start();
}

Server::~Server() { drain(0); }

void Server::on_failure(std::function<void()> call) {
  const std::lock_guard lock(mutex_);
  on_failure_ = std::move(call);
  if (failure_) on_failure_();
}

void Server::engine_failed(std::exception_ptr why) {
  const std::lock_guard lock(mutex_);
  failure_ = std::move(why);
  if (on_failure_) on_failure_();
}

std::exception_ptr Server::failure() const {
  const std::lock_guard lock(mutex_);
  return failure_;
}

bool Server::drain(double seconds) {
  draining_ = true;
  loop_.close();
  return listener_.drain(seconds);
}

std::string Server::metrics_text() const { return metrics_.text(loop_.state(), listener_.counts()); }

void Server::admit(const HttpRequest& request) const {
  check_access(access_, request);
  const Route* route = route_of(request.path());
  if (route == nullptr) throw ApiError(404, "", "", fmt::format("there is nothing at {}", printable(request.target)));
  if (request.method != route->method) {
    throw ApiError(405, "", "", fmt::format("{} takes {}", route->path, route->method));
  }
}

void Server::handle(const HttpRequest& request, HttpReply& reply) {
  const Route& route = *route_of(request.path());
  if (route.answer != nullptr) {
    route.answer(routes_, request, reply);
  } else if (route.path == "/metrics") {
    reply.send(200, "text/plain; version=0.0.4; charset=utf-8", metrics_text());
  } else {
    answer_health(reply);
  }
}

void Server::answer_health(HttpReply& reply) const {
  const LoopState state = loop_.state();
  const bool stuck = state.busy && state.seconds > options_.stuck_seconds;
  const char* status = failure() ? "failed" : draining_ ? "stopping" : stuck ? "stuck" : state.busy ? "busy" : "idle";
  const OrderedJson body = {{"status", status},
                            {"steps", state.steps},
                            {"seconds_since_step", state.busy ? state.seconds : 0.0},
                            {"running", state.running},
                            {"waiting", state.waiting}};
  const bool well = !failure() && !draining_ && !stuck;
  reply.send(well ? 200 : 503, "application/json", dumped(body));
}

}  // namespace furlong
