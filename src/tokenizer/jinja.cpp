#include "tokenizer/jinja.h"

#include <stdexcept>

#include "base/error.h"
#include "tokenizer/jinja_run.h"

namespace furlong {

struct JinjaTemplate::Tree {
  std::string name;
  JinjaLimits limits;
  jinja::Body body;
};

JinjaTemplate JinjaTemplate::parse(std::string_view source, std::string name, const JinjaLimits& limits) {
  if (std::ssize(source) > limits.template_bytes) {
    fail(Exit::input, "{}: the template has {} bytes, more than the {} allowed", name, source.size(),
         limits.template_bytes);
  }
  auto tree = std::make_shared<Tree>();
  tree->body = jinja::parse(source, name);
  tree->name = std::move(name);
  tree->limits = limits;
  JinjaTemplate out;
  out.tree_ = std::move(tree);
  return out;
}

JinjaText JinjaTemplate::render(std::string_view variables, const std::string& where, std::time_t now) const {
  const jinja::Value values = jinja::value_of_json(variables, where);
  if (values.dict() == nullptr) fail(Exit::input, "{}: the variables of a chat template must be an object", where);
  return jinja::Run(tree_->name, tree_->limits, values, now).render(tree_->body);
}

const std::string& JinjaTemplate::name() const { return tree_->name; }

}  // namespace furlong
