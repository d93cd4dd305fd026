// Statements: output, branches, loops, assignments, blocks that catch their output.
#include "absl/strings/str_cat.h"
#include "engine/tokenizer/jinja_interpreter.h"

namespace sage::jinja {

Interpreter::Interpreter(const Program& program, const ChatTemplateLimits& limits, int64_t now)
    : program_(program), now_(now), max_depth_(limits.max_depth), max_output_(limits.max_output_bytes) {
  budget.max_steps = limits.max_steps;
  budget.max_string = limits.max_output_bytes;
  budget.max_items = limits.max_output_bytes / 16;
  budget.max_live = static_cast<int64_t>(limits.max_output_bytes) * 4 + (1 << 20);
}

// Empties what could hold itself, so that every object is freed.
Interpreter::~Interpreter() {
  scope_ = Ref<Scope>();
  globals_.clear();
  for (size_t i = 0; i < mutables_.size(); ++i) {
    Obj* obj = mutables_[i].get();
    if (auto* scope = dynamic_cast<Scope*>(obj)) {
      const std::vector<std::pair<int, Value>> variables = std::move(scope->variables);
      scope->variables.clear();
      scope->parent = Ref<Scope>();
    } else if (auto* ns = dynamic_cast<NamespaceObj*>(obj)) {
      ns->attributes.index.clear();
      const std::vector<std::pair<Value, Value>> entries = std::move(ns->attributes.entries);
      ns->attributes.entries.clear();
    } else if (auto* loop = dynamic_cast<LoopObj*>(obj)) {
      const Value last = std::move(loop->last_changed);
      loop->outer = Ref<Scope>();
    }
  }
}

bool Interpreter::Run(const OrderedJson& context) {
  if (!context.is_object()) return Fail("the context must be a JSON object");
  LoadVariables(context);
  return !failed() && ExecBody(program_.body) != Flow::kError;
}

void Interpreter::LoadVariables(const OrderedJson& context) {
  globals_.resize(program_.names.size());
  for (size_t id = 0; id < program_.names.size(); ++id) {
    const std::string& name = program_.names[id]->s;
    const int64_t function = FindFunction(name);
    if (function >= 0) globals_[id] = Value::Plain(Type::kFunction, function);
  }
  for (const auto& [name, json] : context.items()) {
    const auto it = program_.name_ids.find(name);
    if (it != program_.name_ids.end() && !FromJson(*this, json, &globals_[it->second])) return;
  }
}

Interpreter::Flow Interpreter::ExecBody(const Body& body) {
  for (const NodePtr& node : body) {
    const Flow flow = Exec(*node);
    if (flow != Flow::kNext) return flow;
  }
  return Flow::kNext;
}

Interpreter::Flow Interpreter::Exec(const Node& node) {
  const Depth depth(this);
  if (!depth.ok() || !Step()) return Flow::kError;
  line = node.line;
  switch (node.kind) {
    case Kind::kText:
      return WriteText(node.value.s()) ? Flow::kNext : Flow::kError;
    case Kind::kOutput: {
      Value value;
      return Eval(*node.a, &value) && Write(value) ? Flow::kNext : Flow::kError;
    }
    case Kind::kIf:
      return ExecIf(node);
    case Kind::kFor: {
      Value iterable;
      return Eval(*node.b, &iterable) ? ExecFor(node, iterable, 0) : Flow::kError;
    }
    case Kind::kSet: {
      Value value;
      return Eval(*node.b, &value) && Assign(*node.a, value) ? Flow::kNext : Flow::kError;
    }
    case Kind::kSetBlock:
      return ExecSetBlock(node);
    case Kind::kMacro:
      return ExecMacro(node);
    case Kind::kCallBlock:
      return ExecCallBlock(node);
    case Kind::kFilterBlock:
      return ExecFilterBlock(node);
    case Kind::kWith:
      return ExecWith(node);
    case Kind::kScope:
      return ExecScoped(node.body);
    case Kind::kBreak:
      return Flow::kBreak;
    case Kind::kContinue:
      return Flow::kContinue;
    default:
      Fail("not a statement");
      return Flow::kError;
  }
}

bool Interpreter::WriteText(std::string_view text) {
  if (out_->size() + text.size() > max_output_) return LimitHit("output");
  budget.live += static_cast<int64_t>(text.size());
  if (budget.live > budget.max_live) return LimitHit("memory");
  out_->append(text);
  return StepBytes(text.size());
}

bool Interpreter::Write(const Value& value) {
  if (value.is_string()) return WriteText(value.s());
  std::string text;
  return AppendStr(*this, value, &text) && WriteText(text);
}

Interpreter::Flow Interpreter::ExecIf(const Node& node) {
  for (size_t i = 0; i < node.list.size(); ++i) {
    Value condition;
    if (!Eval(*node.list[i], &condition)) return Flow::kError;
    if (Truthy(condition)) return ExecBody(node.bodies[i]);
  }
  return node.bodies.size() > node.list.size() ? ExecBody(node.bodies.back()) : Flow::kNext;
}

// Keeps the items for which the loop's own filter holds.
bool Interpreter::FilterItems(const Node& node, Value* list) {
  std::vector<Value> kept;
  const Ref<Scope> outer = scope_;
  bool ok = true;
  for (const Value& item : list->items()) {
    scope_ = Ref<Scope>(new Scope);
    scope_->parent = outer;
    Value condition;
    ok = Unpack(*node.a, item) && Eval(*node.c, &condition);
    if (!ok) break;
    if (Truthy(condition)) kept.push_back(item);
  }
  scope_ = outer;
  return ok && List(std::move(kept), list);
}

Interpreter::Flow Interpreter::ExecFor(const Node& node, const Value& iterable, int depth0) {
  Value list;
  if (!Iterate(*this, iterable, &list)) return Flow::kError;
  if (node.c != nullptr && !FilterItems(node, &list)) return Flow::kError;
  if (list.items().empty()) return ExecScoped(node.other);
  return ExecLoop(node, std::move(list), depth0);
}

Interpreter::Flow Interpreter::ExecLoop(const Node& node, Value list, int depth0) {
  const auto found = program_.name_ids.find("loop");
  const Ref<Scope> outer = scope_;
  Ref<LoopObj> loop(new LoopObj);
  loop->list = std::move(list);
  loop->depth0 = depth0;
  if (node.flag) {
    loop->node = &node;
    loop->outer = outer;
    Keep(loop.get());
  }
  if (!Own(loop.get(), 200) || !CanHold(loop->list, loop.get())) return Flow::kError;
  Flow flow = Flow::kNext;
  for (; loop->at < loop->length(); ++loop->at) {
    // A macro or a recursive loop may hold the last round's scope; otherwise it is used again.
    if (scope_.get() != outer.get() && scope_->refs == 1) {
      scope_->variables.clear();
    } else {
      scope_ = Ref<Scope>(new Scope);
      scope_->parent = outer;
    }
    if (found != program_.name_ids.end()) SetVariable(found->second, Value::Object(Type::kLoop, loop.get()));
    flow = Unpack(*node.a, loop->list.items()[loop->at]) ? ExecBody(node.body) : Flow::kError;
    if (flow == Flow::kError || flow == Flow::kBreak) break;
    flow = Flow::kNext;
  }
  scope_ = outer;
  return flow == Flow::kError ? flow : Flow::kNext;
}

Interpreter::Flow Interpreter::ExecScoped(const Body& body) {
  if (body.empty()) return Flow::kNext;
  const Ref<Scope> outer = scope_;
  scope_ = Ref<Scope>(new Scope);
  scope_->parent = outer;
  const Flow flow = ExecBody(body);
  scope_ = outer;
  return flow;
}

bool Interpreter::Capture(const Body& body, Value* text) {
  std::string caught;
  std::string* const before = out_;
  out_ = &caught;
  const Flow flow = ExecScoped(body);
  out_ = before;
  budget.live -= static_cast<int64_t>(caught.size());
  return flow != Flow::kError && Text(std::move(caught), text);
}

void Interpreter::SetVariable(int name, Value value) {
  if (!scope_) {
    globals_[name] = std::move(value);
    return;
  }
  for (auto& [id, old] : scope_->variables) {
    if (id == name) {
      old = std::move(value);
      return;
    }
  }
  scope_->variables.emplace_back(name, std::move(value));
}

bool Interpreter::Unpack(const Node& target, const Value& value) {
  if (target.kind == Kind::kName) {
    SetVariable(target.name, value);
    return true;
  }
  Value list;
  if (!Iterate(*this, value, &list)) return false;
  const size_t want = target.list.size();
  if (list.items().size() != want) {
    return Fail(absl::StrCat(list.items().size() < want ? "not enough" : "too many", " values to unpack (expected ",
                             want, ", got ", list.items().size(), ")"));
  }
  for (size_t i = 0; i < want; ++i) {
    if (!Unpack(*target.list[i], list.items()[i])) return false;
  }
  return true;
}

bool Interpreter::Assign(const Node& target, const Value& value) {
  if (target.kind != Kind::kNamespaceTarget) return Unpack(target, value);
  Value ns;
  if (!EvalName(target.name, &ns)) return false;
  if (!ns.Is(Type::kNamespace)) return Fail("cannot assign attribute on non-namespace object");
  auto* obj = static_cast<NamespaceObj*>(ns.obj());
  const size_t before = obj->attributes.entries.size();
  obj->attributes.Set(target.value, value);
  if (obj->attributes.entries.size() == before) return true;
  obj->charged += 100;
  budget.live += 100;
  return true;
}

Interpreter::Flow Interpreter::ExecSetBlock(const Node& node) {
  Value text;
  if (!Capture(node.body, &text)) return Flow::kError;
  if (node.c != nullptr && !EvalFilterChain(*node.c, text, &text)) return Flow::kError;
  return Assign(*node.a, text) ? Flow::kNext : Flow::kError;
}

Interpreter::Flow Interpreter::ExecFilterBlock(const Node& node) {
  Value text;
  if (!Capture(node.body, &text) || !EvalFilterChain(*node.a, text, &text) || !Write(text)) return Flow::kError;
  return Flow::kNext;
}

Interpreter::Flow Interpreter::ExecMacro(const Node& node) {
  SetVariable(node.name, MakeMacro(node, program_.names[node.name]->s));
  return failed() ? Flow::kError : Flow::kNext;
}

Interpreter::Flow Interpreter::ExecCallBlock(const Node& node) {
  const Value caller = MakeMacro(node, "caller");
  Value result;
  if (failed() || !EvalCall(*node.a, &caller, &result) || !Write(result)) return Flow::kError;
  return Flow::kNext;
}

// Values are computed outside the new scope, so they cannot see each other.
Interpreter::Flow Interpreter::ExecWith(const Node& node) {
  std::vector<Value> values(node.list.size() / 2);
  for (size_t i = 0; i < values.size(); ++i) {
    if (!Eval(*node.list[2 * i + 1], &values[i])) return Flow::kError;
  }
  const Ref<Scope> outer = scope_;
  scope_ = Ref<Scope>(new Scope);
  scope_->parent = outer;
  Flow flow = Flow::kNext;
  for (size_t i = 0; i < values.size() && flow == Flow::kNext; ++i) {
    if (!Unpack(*node.list[2 * i], values[i])) flow = Flow::kError;
  }
  if (flow == Flow::kNext) flow = ExecBody(node.body);
  scope_ = outer;
  return flow;
}

}  // namespace sage::jinja
