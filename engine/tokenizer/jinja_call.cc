// Calls: macros, global functions, loop objects, and the binding of arguments.
#include <ctime>

#include "absl/strings/str_cat.h"
#include "engine/tokenizer/jinja_interpreter.h"

namespace sage::jinja {
namespace {

enum Function : int64_t { kRange, kDict, kNamespace, kCycler, kJoiner, kRaise, kClock };
constexpr std::string_view kFunctions[] = {"range",           "dict",        "namespace", "cycler", "joiner",
                                           "raise_exception", "strftime_now"};
constexpr int64_t kMaxRange = 100000;  // Jinja's sandbox has the same

enum LoopMethodId : int64_t { kLoopCycle = 1000, kLoopChanged, kCyclerNext, kCyclerReset };

}  // namespace

std::string RangeRepr(const Value& range) {
  const auto* r = static_cast<const RangeObj*>(range.obj());
  if (r->step == 1) return absl::StrCat("range(", r->start, ", ", r->stop, ")");
  return absl::StrCat("range(", r->start, ", ", r->stop, ", ", r->step, ")");
}

int64_t FindFunction(std::string_view name) {
  for (size_t i = 0; i < std::size(kFunctions); ++i) {
    if (kFunctions[i] == name) return static_cast<int64_t>(i);
  }
  return -1;
}

bool Interpreter::Bind(std::string_view function, const Args& args, std::initializer_list<const char*> names,
                       size_t required, const Value** out) {
  const std::string what(function);
  if (args.list.size() > names.size()) {
    return Fail(absl::StrCat(what, "() takes at most ", names.size(), " arguments, got ", args.list.size()));
  }
  for (size_t i = 0; i < names.size(); ++i) out[i] = i < args.list.size() ? &args.list[i] : nullptr;
  for (const auto& [keyword, value] : args.keywords) {
    size_t at = 0;
    for (const char* name : names) {
      if (keyword == name) break;
      ++at;
    }
    if (at == names.size()) {
      return Fail(absl::StrCat(what, "() got an unexpected keyword argument '", keyword, "'"));
    }
    if (out[at] != nullptr) return Fail(absl::StrCat(what, "() got multiple values for argument '", keyword, "'"));
    out[at] = &value;
  }
  for (size_t i = 0; i < required; ++i) {
    if (out[i] == nullptr) return Fail(absl::StrCat(what, "() missing argument '", names.begin()[i], "'"));
  }
  return true;
}

bool Interpreter::BindInt(const Value* arg, int64_t fallback, int64_t* out) {
  *out = fallback;
  if (arg == nullptr) return true;
  if (arg->is_undefined()) return FailUndefined(*this, *arg);
  if (!arg->is_integer()) {
    return Fail(absl::StrCat("'", std::string(TypeName(arg->type())), "' object cannot be interpreted as an integer"));
  }
  *out = arg->i();
  return true;
}

bool Interpreter::BindText(std::string_view function, const Value* arg, std::string_view* out) {
  if (arg != nullptr && arg->is_undefined()) return FailUndefined(*this, *arg);
  if (arg == nullptr || !arg->is_string()) {
    return Fail(absl::StrCat(std::string(function), "() needs a string, got '",
                             arg == nullptr ? "nothing" : std::string(TypeName(arg->type())), "'"));
  }
  *out = arg->s();
  return true;
}

bool Interpreter::Call(const Value& callee, Args& args, Value* out) {
  switch (callee.type()) {
    case Type::kMethod: {
      // A copy: the call may drop the last reference to the method's object.
      const Value self = static_cast<MethodObj*>(callee.obj())->self;
      if (self.Is(Type::kLoop)) return LoopMethod(static_cast<LoopObj*>(self.obj()), callee.i(), args, out);
      if (self.Is(Type::kCycler)) {
        auto* cycler = static_cast<CyclerObj*>(self.obj());
        if (!args.list.empty() || !args.keywords.empty()) return Fail("the cycler's methods take no arguments");
        const size_t at = callee.i() == kCyclerReset ? 0 : cycler->at;
        *out = callee.i() == kCyclerReset ? Value::None() : cycler->list.items()[at];
        cycler->at = callee.i() == kCyclerReset ? 0 : (at + 1) % cycler->list.items().size();
        return true;
      }
      return CallMethod(self, callee.i(), args, out);
    }
    case Type::kFunction:
      return CallFunction(callee.i(), args, out);
    case Type::kMacro: {
      const Ref<Obj> hold(callee.obj());
      return CallMacro(*static_cast<MacroObj*>(callee.obj()), args, out);
    }
    case Type::kLoop: {
      const Ref<Obj> hold(callee.obj());
      return CallLoop(static_cast<LoopObj*>(callee.obj()), args, out);
    }
    case Type::kJoiner: {
      auto* joiner = static_cast<JoinerObj*>(callee.obj());
      if (joiner->used) {
        *out = joiner->separator;
        return true;
      }
      joiner->used = true;
      return Text("", out);
    }
    case Type::kUndefined:
      return FailUndefined(*this, callee);
    default:
      return Fail(absl::StrCat("'", std::string(TypeName(callee.type())), "' object is not callable"));
  }
}

bool Interpreter::CallFunction(int64_t function, Args& args, Value* out) {
  const Value* bound[1];
  switch (function) {
    case kRange:
      return CallRange(args, out);
    case kDict:
      return CallDict(args, out, false);
    case kNamespace:
      return CallDict(args, out, true);
    case kCycler: {
      if (args.list.empty()) return Fail("at least one item has to be provided");
      Ref<CyclerObj> cycler(new CyclerObj);
      if (!List(std::move(args.list), &cycler->list)) return false;
      *out = Value::Object(Type::kCycler, cycler.get());
      return Own(cycler.get(), 64) && CanHold(cycler->list, cycler.get());
    }
    case kJoiner: {
      Ref<JoinerObj> joiner(new JoinerObj);
      if (!Bind("joiner", args, {"sep"}, 0, bound)) return false;
      if (bound[0] != nullptr) {
        joiner->separator = *bound[0];
      } else if (!Text(", ", &joiner->separator)) {
        return false;
      }
      *out = Value::Object(Type::kJoiner, joiner.get());
      return Own(joiner.get(), 64) && CanHold(joiner->separator, joiner.get());
    }
    case kRaise: {
      std::string text;
      if (!Bind("raise_exception", args, {"message"}, 1, bound) || !AppendStr(*this, *bound[0], &text)) return false;
      return Raise(text);
    }
    default:
      return CallClock(args, out);
  }
}

bool Interpreter::CallRange(Args& args, Value* out) {
  if (!args.keywords.empty() || args.list.empty() || args.list.size() > 3) return Fail("range() takes 1 to 3 integers");
  int64_t n[3] = {0, 0, 1};
  for (size_t i = 0; i < args.list.size(); ++i) {
    if (!BindInt(&args.list[i], 0, &n[i])) return false;
  }
  Ref<RangeObj> range(new RangeObj);
  range->start = args.list.size() == 1 ? 0 : n[0];
  range->stop = args.list.size() == 1 ? n[0] : n[1];
  range->step = n[2];
  if (range->step == 0) return Fail("range() arg 3 must not be zero");
  for (int64_t at = range->start; range->step > 0 ? at < range->stop : at > range->stop;) {
    if (static_cast<int64_t>(range->items.size()) >= kMaxRange) {
      return LimitHit(absl::StrCat("the length of a range (", kMaxRange, ")"));
    }
    range->items.push_back(Value::Int(at));
    if (__builtin_add_overflow(at, range->step, &at)) break;
  }
  range->depth = 1;
  range->weight = 1 + static_cast<int64_t>(range->items.size());
  *out = Value::Object(Type::kRange, range.get());
  return Step(range->weight / 4) && Own(range.get(), 128 + range->weight * static_cast<int64_t>(sizeof(Value)));
}

// dict(mapping or pairs, key=value...) and namespace(...)
bool Interpreter::CallDict(Args& args, Value* out, bool as_namespace) {
  if (args.list.size() > 1) return Fail("expected at most 1 argument");
  Ref<DictObj> dict(new DictObj);
  if (!args.list.empty() && args.list[0].Is(Type::kDict)) {
    if (!Step(Weight(args.list[0]))) return false;
    for (const auto& [key, value] : args.list[0].dict().entries) dict->Set(key, value);
  } else if (!args.list.empty()) {
    Value pairs;
    if (!Iterate(*this, args.list[0], &pairs) || !Step(Weight(pairs))) return false;
    for (const Value& item : pairs.items()) {
      Value pair;
      if (!Iterate(*this, item, &pair)) return false;
      if (pair.items().size() != 2) return Fail("dictionary update sequence elements must have length 2");
      if (!Hashable(pair.items()[0])) return Fail("unhashable key");
      dict->Set(pair.items()[0], pair.items()[1]);
    }
  }
  for (const auto& [name, value] : args.keywords) {
    Value key;
    if (!Text(name, &key)) return false;
    dict->Set(key, value);
  }
  if (!as_namespace) return Dict(std::move(dict), out);
  Ref<NamespaceObj> ns(new NamespaceObj);
  *out = Value::Object(Type::kNamespace, ns.get());
  if (!Own(ns.get(), 256 + 100 * static_cast<int64_t>(dict->entries.size()))) return false;
  for (const auto& [key, value] : dict->entries) ns->attributes.Set(key, value);
  Keep(ns.get());
  return true;
}

bool Interpreter::CallClock(Args& args, Value* out) {
  const Value* bound[1];
  std::string_view format;
  if (!Bind("strftime_now", args, {"format"}, 1, bound) || !BindText("strftime_now", bound[0], &format)) return false;
  if (format.size() > 1000) return LimitHit("length of a time format");
  if (format.empty()) return Text("", out);
  const time_t when = now_ != 0 ? static_cast<time_t>(now_) : std::time(nullptr);
  struct tm parts {};
  if (localtime_r(&when, &parts) == nullptr) return Fail("strftime_now: the time cannot be shown");
  // A space in front tells "empty" from "too long".
  const std::string padded = absl::StrCat(" ", std::string(format.substr(0, format.find('\0'))));
  std::string buffer(64 * 1024, 0);
  const size_t size = std::strftime(buffer.data(), buffer.size(), padded.c_str(), &parts);
  if (size == 0) return LimitHit("length of a time text");
  return Text(buffer.substr(1, size - 1), out);
}

Value Interpreter::MakeMacro(const Node& node, std::string name) {
  Ref<MacroObj> macro(new MacroObj);
  macro->name = std::move(name);
  macro->node = &node;
  macro->scope = scope_;
  Own(macro.get(), 128);
  if (scope_ && !scope_->kept) {
    scope_->kept = true;
    Own(scope_.get(), 256);
    Keep(scope_.get());
  }
  return Value::Object(Type::kMacro, macro.get());
}

bool Interpreter::CallMacro(const MacroObj& macro, Args& args, Value* out) {
  if (calls_ >= max_depth_) return LimitHit("nesting of macro calls");
  const Ref<Scope> caller_scope = scope_;
  const int caller_line = line;
  Ref<Scope> scope(new Scope);
  scope->parent = macro.scope;
  scope_ = scope;
  ++calls_;
  const bool ok = BindMacro(macro, args, scope.get()) && Capture(macro.node->body, out);
  --calls_;
  scope_ = caller_scope;
  if (ok) line = caller_line;
  return ok;
}

bool Interpreter::BindMacro(const MacroObj& macro, Args& args, Scope* scope) {
  const Node& node = *macro.node;
  const auto take = [&](const std::string& name, Value* value) {
    for (auto it = args.keywords.begin(); it != args.keywords.end(); ++it) {
      if (it->first != name) continue;
      *value = std::move(it->second);
      args.keywords.erase(it);
      return true;
    }
    return false;
  };
  const size_t count = node.params.size();
  bool caller_named = false;
  // All parameters exist before the defaults are computed, which may name earlier ones.
  for (size_t i = 0; i < count; ++i) {
    const Param& param = node.params[i];
    const std::string& name = program_.names[param.name]->s;
    caller_named = caller_named || name == "caller";
    Value value;
    if (i < args.list.size()) {
      value = args.list[i];
    } else if (!take(name, &value)) {
      if (param.fallback != nullptr) {
        if (!Eval(*param.fallback, &value)) return false;
      } else {
        Value message;
        if (!Text(absl::StrCat("parameter '", name, "' was not provided"), &message)) return false;
        value = Value::Undefined(static_cast<StrObj*>(message.obj()), Type::kAbsent);
      }
    }
    SetVariable(param.name, std::move(value));
  }
  const auto special = [&](const char* name, Value value) {
    const auto it = program_.name_ids.find(name);
    if (it != program_.name_ids.end()) scope->variables.emplace_back(it->second, std::move(value));
  };
  if (node.uses_caller && !caller_named) {
    Value caller;
    if (!take("caller", &caller)) {
      Value message;
      if (!Text("No caller defined", &message)) return false;
      caller = Value::Undefined(static_cast<StrObj*>(message.obj()), Type::kAbsent);
    }
    special("caller", std::move(caller));
  }
  if (node.uses_kwargs) {
    Ref<DictObj> dict(new DictObj);
    Value kwargs;
    for (const auto& [name, value] : args.keywords) {
      Value key;
      if (!Text(name, &key)) return false;
      dict->Set(key, value);
    }
    if (!Dict(std::move(dict), &kwargs)) return false;
    special("kwargs", std::move(kwargs));
  } else if (!args.keywords.empty()) {
    return Fail(absl::StrCat("macro '", macro.name, "' takes no keyword argument '", args.keywords[0].first, "'"));
  }
  if (node.uses_varargs) {
    std::vector<Value> rest;
    if (args.list.size() > count) rest.assign(args.list.begin() + static_cast<int64_t>(count), args.list.end());
    Value varargs;
    if (!List(std::move(rest), &varargs, Type::kTuple)) return false;
    special("varargs", std::move(varargs));
  } else if (args.list.size() > count) {
    return Fail(absl::StrCat("macro '", macro.name, "' takes not more than ", count, " argument(s)"));
  }
  return true;
}

// loop(children) inside a recursive loop: the same loop one level down, as text.
bool Interpreter::CallLoop(LoopObj* loop, Args& args, Value* out) {
  const Value* bound[1];
  if (loop->node == nullptr) return Fail("the loop must have the 'recursive' marker to be called");
  if (!Bind("loop", args, {"iterable"}, 1, bound)) return false;
  if (calls_ >= max_depth_) return LimitHit("nesting of loop calls");
  const Ref<Scope> caller_scope = scope_;
  scope_ = loop->outer;
  std::string caught;
  std::string* const before = out_;
  out_ = &caught;
  ++calls_;
  const Flow flow = ExecFor(*loop->node, *bound[0], loop->depth0 + 1);
  --calls_;
  out_ = before;
  scope_ = caller_scope;
  budget.live -= static_cast<int64_t>(caught.size());
  return flow != Flow::kError && Text(std::move(caught), out);
}

// Absent when the loop has no such attribute.
bool Interpreter::LoopAttribute(LoopObj* loop, std::string_view name, Value* out) {
  const int64_t size = loop->length();
  const int64_t at = loop->at;
  *out = Value();
  if (name == "index") *out = Value::Int(at + 1);
  if (name == "index0") *out = Value::Int(at);
  if (name == "revindex") *out = Value::Int(size - at);
  if (name == "revindex0") *out = Value::Int(size - at - 1);
  if (name == "first") *out = Value::Bool(at == 0);
  if (name == "last") *out = Value::Bool(at + 1 >= size);
  if (name == "length") *out = Value::Int(size);
  if (name == "depth") *out = Value::Int(loop->depth0 + 1);
  if (name == "depth0") *out = Value::Int(loop->depth0);
  const bool previous = name == "previtem";
  if (!previous && name != "nextitem") return true;
  const int64_t other = previous ? at - 1 : at + 1;
  if (other >= 0 && other < size) {
    *out = loop->list.items()[other];
    return true;
  }
  Value message;
  if (!Text(previous ? "there is no previous item" : "there is no next item", &message)) return false;
  *out = Value::Undefined(static_cast<StrObj*>(message.obj()), Type::kAbsent);
  return true;
}

bool Interpreter::LoopMethod(LoopObj* loop, int64_t method, Args& args, Value* out) {
  if (!args.keywords.empty()) return Fail("the loop's methods take no keyword arguments");
  if (method == kLoopCycle) {
    if (args.list.empty()) return Fail("no items for cycling given");
    *out = args.list[static_cast<size_t>(loop->at) % args.list.size()];
    return true;
  }
  Value now;
  if (!List(std::move(args.list), &now, Type::kTuple)) return false;
  if (!loop->last_changed.present()) Keep(loop);
  const bool same = loop->last_changed.present() && Equals(loop->last_changed, now);
  if (!Step(Weight(now))) return false;
  loop->last_changed = std::move(now);
  *out = Value::Bool(!same);
  return true;
}

int64_t FindStateMethod(Type type, std::string_view name) {
  if (type == Type::kLoop && name == "cycle") return kLoopCycle;
  if (type == Type::kLoop && name == "changed") return kLoopChanged;
  if (type == Type::kCycler && name == "next") return kCyclerNext;
  if (type == Type::kCycler && name == "reset") return kCyclerReset;
  return -1;
}

}  // namespace sage::jinja
