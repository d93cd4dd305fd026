// Expressions: names, literals, operators' operands, subscripts, filters and tests.
#include <cmath>

#include "absl/strings/str_cat.h"
#include "engine/tokenizer/jinja_interpreter.h"

namespace sage::jinja {

bool Interpreter::Eval(const Node& node, Value* out) {
  const Depth depth(this);
  if (!depth.ok() || !Step()) return false;
  switch (node.kind) {
    case Kind::kConst:
      *out = node.value;
      return true;
    case Kind::kName:
      return EvalName(node.name, out);
    case Kind::kList:
    case Kind::kTuple:
      return EvalSequence(node, out);
    case Kind::kDict:
      return EvalDict(node, out);
    case Kind::kAttribute: {
      Value object;
      return Eval(*node.a, &object) && Attribute(object, node.value, out);
    }
    case Kind::kSubscript:
      return EvalSubscript(node, out);
    case Kind::kCall:
      return EvalCall(node, nullptr, out);
    case Kind::kFilter:
      return EvalFilter(node, nullptr, out);
    case Kind::kTest:
      return EvalTest(node, out);
    case Kind::kNot: {
      Value value;
      if (!Eval(*node.a, &value)) return false;
      *out = Value::Bool(!Truthy(value));
      return true;
    }
    case Kind::kNegate:
    case Kind::kPlus:
      return EvalSign(node, out);
    case Kind::kArithmetic:
      return EvalArithmetic(node, out);
    case Kind::kConcat:
      return EvalConcat(node, out);
    case Kind::kCompare:
      return EvalCompare(node, out);
    case Kind::kAnd:
    case Kind::kOr:
      return EvalLogic(node, out);
    case Kind::kConditional:
      return EvalConditional(node, out);
    default:
      return Fail("not an expression");
  }
}

bool Interpreter::EvalName(int name, Value* out) {
  for (const Scope* scope = scope_.get(); scope != nullptr; scope = scope->parent.get()) {
    for (const auto& [id, value] : scope->variables) {
      if (id == name) {
        *out = value;
        return true;
      }
    }
  }
  const Value& global = globals_[name];
  *out = global.present() ? global : Value::Undefined(program_.names[name]);
  return true;
}

bool Interpreter::EvalSequence(const Node& node, Value* out) {
  std::vector<Value> items(node.list.size());
  for (size_t i = 0; i < items.size(); ++i) {
    if (!Eval(*node.list[i], &items[i])) return false;
  }
  return List(std::move(items), out, node.kind == Kind::kList ? Type::kList : Type::kTuple);
}

bool Interpreter::EvalDict(const Node& node, Value* out) {
  Ref<DictObj> dict(new DictObj);
  for (size_t i = 0; i + 1 < node.list.size(); i += 2) {
    Value key;
    Value value;
    if (!Eval(*node.list[i], &key) || !Eval(*node.list[i + 1], &value)) return false;
    if (!Hashable(key)) return Fail(absl::StrCat("unhashable type: '", std::string(TypeName(key.type())), "'"));
    if (!Step(Weight(key))) return false;
    dict->Set(key, std::move(value));
  }
  return Dict(std::move(dict), out);
}

bool Interpreter::EvalArithmetic(const Node& node, Value* out) {
  Value left;
  if (!Eval(*node.list[0], &left)) return false;
  for (size_t i = 0; i < node.ops.size(); ++i) {
    Value right;
    Value result;
    if (!Eval(*node.list[i + 1], &right) || !Binary(node.ops[i], left, right, &result)) return false;
    left = std::move(result);
  }
  *out = std::move(left);
  return true;
}

bool Interpreter::EvalConcat(const Node& node, Value* out) {
  std::string text;
  for (const NodePtr& part : node.list) {
    Value value;
    if (!Eval(*part, &value) || !AppendStr(*this, value, &text)) return false;
  }
  return Text(std::move(text), out);
}

bool Interpreter::EvalCompare(const Node& node, Value* out) {
  Value left;
  if (!Eval(*node.list[0], &left)) return false;
  bool holds = true;
  for (size_t i = 0; i < node.ops.size() && holds; ++i) {
    Value right;
    if (!Eval(*node.list[i + 1], &right) || !Compare(node.ops[i], left, right, &holds)) return false;
    left = std::move(right);
  }
  *out = Value::Bool(holds);
  return true;
}

bool Interpreter::EvalLogic(const Node& node, Value* out) {
  for (const NodePtr& operand : node.list) {
    if (!Eval(*operand, out)) return false;
    if (Truthy(*out) == (node.kind == Kind::kOr)) return true;
  }
  return true;
}

bool Interpreter::EvalConditional(const Node& node, Value* out) {
  Value condition;
  if (!Eval(*node.b, &condition)) return false;
  if (Truthy(condition)) return Eval(*node.a, out);
  if (node.c != nullptr) return Eval(*node.c, out);
  Value message;
  if (!Text("the inline if-expression evaluated to false and no else section was defined", &message)) return false;
  *out = Value::Undefined(static_cast<StrObj*>(message.obj()), Type::kAbsent);
  return true;
}

bool Interpreter::EvalSign(const Node& node, Value* out) {
  Value value;
  if (!Eval(*node.a, &value)) return false;
  if (value.is_undefined()) return FailUndefined(*this, value);
  const bool negate = node.kind == Kind::kNegate;
  if (value.Is(Type::kFloat)) {
    *out = Value::Float(negate ? -value.d() : value.d());
    return true;
  }
  if (!value.is_integer()) {
    return Fail(absl::StrCat("bad operand type for unary ", negate ? "-" : "+", ": '",
                             std::string(TypeName(value.type())), "'"));
  }
  if (negate && value.i() == INT64_MIN) return Fail("integer overflow: a result must fit in 64 bits");
  *out = Value::Int(negate ? -value.i() : value.i());
  return true;
}

bool Interpreter::EvalSubscript(const Node& node, Value* out) {
  Value object;
  if (!Eval(*node.a, &object)) return false;
  if (node.b->kind == Kind::kSlice) return EvalSlice(*node.b, object, out);
  Value key;
  return Eval(*node.b, &key) && Item(object, key, out);
}

bool Interpreter::EvalSlice(const Node& node, const Value& object, Value* out) {
  Value parts[3];
  for (int i = 0; i < 3; ++i) {
    if (node.list[i] == nullptr) {
      parts[i] = Value::None();
    } else if (!Eval(*node.list[i], &parts[i])) {
      return false;
    }
  }
  return Slice(object, parts[0], parts[1], parts[2], out);
}

bool Interpreter::EvalArgs(const Node& node, Args* args) {
  args->list.resize(node.list.size());
  for (size_t i = 0; i < node.list.size(); ++i) {
    if (!Eval(*node.list[i], &args->list[i])) return false;
  }
  for (const Keyword& keyword : node.keywords) {
    args->keywords.emplace_back(keyword.name, Value());
    if (!Eval(*keyword.value, &args->keywords.back().second)) return false;
  }
  if (node.star != nullptr) {
    Value more;
    if (!Eval(*node.star, &more) || !Iterate(*this, more, &more)) return false;
    if (!Step(static_cast<int64_t>(more.items().size()))) return false;
    args->list.insert(args->list.end(), more.items().begin(), more.items().end());
  }
  if (node.star_star != nullptr) {
    Value more;
    if (!Eval(*node.star_star, &more)) return false;
    if (!more.Is(Type::kDict)) return Fail("argument after ** must be a mapping");
    if (more.dict().entries.size() > 1000) return LimitHit("keyword arguments");
    for (const auto& [key, value] : more.dict().entries) {
      if (!key.is_string()) return Fail("keywords must be strings");
      for (const auto& [name, old] : args->keywords) {
        if (name == key.s()) return Fail(absl::StrCat("got multiple values for keyword argument '", name, "'"));
      }
      args->keywords.emplace_back(key.s(), value);
    }
  }
  return true;
}

bool Interpreter::EvalCall(const Node& node, const Value* caller, Value* out) {
  Value callee;
  Args args;
  if (!Eval(*node.a, &callee) || !EvalArgs(node, &args)) return false;
  if (caller != nullptr) args.keywords.emplace_back("caller", *caller);
  return Call(callee, args, out);
}

// `input`: what a filter block caught, for the innermost filter of its chain.
bool Interpreter::EvalFilter(const Node& node, const Value* input, Value* out) {
  Value value;
  if (node.a == nullptr) {
    if (input == nullptr) return Fail("a filter needs an input");
    value = *input;
  } else if (!(node.a->kind == Kind::kFilter && input != nullptr ? EvalFilter(*node.a, input, &value)
                                                                 : Eval(*node.a, &value))) {
    return false;
  }
  if (node.filter == nullptr) return Fail(absl::StrCat("no filter named '", node.value.s(), "'"));
  Args args;
  return EvalArgs(node, &args) && node.filter(*this, value, args, out);
}

bool Interpreter::EvalFilterChain(const Node& node, Value input, Value* out) { return EvalFilter(node, &input, out); }

bool Interpreter::EvalTest(const Node& node, Value* out) {
  Value value;
  if (!Eval(*node.a, &value)) return false;
  if (node.test == nullptr) return Fail(absl::StrCat("no test named '", node.value.s(), "'"));
  Args args;
  bool holds = false;
  if (!EvalArgs(node, &args) || !node.test(*this, value, args, &holds)) return false;
  *out = Value::Bool(holds);
  return true;
}

}  // namespace sage::jinja
