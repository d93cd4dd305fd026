// The tests after `is`.
#include <cmath>
#include <unordered_map>

#include "absl/strings/str_cat.h"
#include "engine/tokenizer/jinja_interpreter.h"
#include "engine/tokenizer/jinja_text.h"

namespace sage::jinja {
namespace {

bool NoArgs(Interpreter& in, const Args& args) { return in.Bind("test", args, {}, 0, nullptr); }

template <bool (*kHolds)(const Value&)>
bool Plain(Interpreter& in, const Value& v, Args& args, bool* out) {
  *out = kHolds(v);
  return NoArgs(in, args);
}

bool Defined(const Value& v) { return !v.is_undefined(); }
bool Undefined(const Value& v) { return v.is_undefined(); }
bool IsNone(const Value& v) { return v.is_none(); }
bool IsText(const Value& v) { return v.is_string(); }
bool IsMapping(const Value& v) { return v.Is(Type::kDict); }
bool IsBoolean(const Value& v) { return v.Is(Type::kBool); }
bool IsTrue(const Value& v) { return v.Is(Type::kBool) && v.b(); }
bool IsFalse(const Value& v) { return v.Is(Type::kBool) && !v.b(); }
bool IsInteger(const Value& v) { return v.Is(Type::kInt) || v.Is(Type::kBigUint); }
bool IsFloat(const Value& v) { return v.Is(Type::kFloat); }
bool IsNumber(const Value& v) { return v.is_number(); }
bool IsEscaped(const Value& v) { return v.is_string() && v.special(); }
// Jinja asks for len() and []; an undefined value has both only in part.
bool IsSequence(const Value& v) { return v.is_string() || v.is_sequence() || v.Is(Type::kDict) || v.is_undefined(); }
bool IsIterable(const Value& v) {
  return v.is_string() || v.is_listlike() || v.Is(Type::kDict) || v.is_undefined() || v.Is(Type::kLoop);
}
bool IsCallable(const Value& v) {
  return v.Is(Type::kMethod) || v.Is(Type::kFunction) || v.Is(Type::kMacro) || v.Is(Type::kJoiner) ||
         v.Is(Type::kLoop) || v.is_undefined();
}

template <bool kOdd>
bool Parity(Interpreter& in, const Value& v, Args& args, bool* out) {
  Value rest;
  if (!NoArgs(in, args) || !in.Binary(Op::kMod, v, Value::Int(2), &rest)) return false;
  *out = Equals(rest, Value::Int(kOdd ? 1 : 0));
  return true;
}

bool DivisibleBy(Interpreter& in, const Value& v, Args& args, bool* out) {
  const Value* bound[1];
  Value rest;
  if (!in.Bind("divisibleby", args, {"num"}, 1, bound) || !in.Binary(Op::kMod, v, *bound[0], &rest)) return false;
  *out = Equals(rest, Value::Int(0));
  return true;
}

template <Op kOp>
bool Comparison(Interpreter& in, const Value& v, Args& args, bool* out) {
  const Value* bound[1];
  return in.Bind("test", args, {"other"}, 1, bound) && in.Compare(kOp, v, *bound[0], out);
}

bool SameAs(Interpreter& in, const Value& v, Args& args, bool* out) {
  const Value* bound[1];
  if (!in.Bind("sameas", args, {"other"}, 1, bound)) return false;
  const Value& other = *bound[0];
  *out = v.type() == other.type() &&
         (v.is_string() ? v.obj() == other.obj() || v.s() == other.s() : v.obj() == other.obj() && v.i() == other.i());
  return true;
}

template <CharClass kClass>
bool TextCase(Interpreter& in, const Value& v, Args& args, bool* out) {
  Value text;
  if (!NoArgs(in, args) || !ToText(in, v, &text)) return false;
  *out = AllOfClass(text.s(), kClass);
  return true;
}

bool IsFilter(Interpreter& in, const Value& v, Args& args, bool* out) {
  *out = v.is_string() && FindFilter(v.s()) != nullptr;
  return NoArgs(in, args);
}

bool IsTestName(Interpreter& in, const Value& v, Args& args, bool* out) {
  *out = v.is_string() && FindTest(v.s()) != nullptr;
  return NoArgs(in, args);
}

}  // namespace

TestFn FindTest(const std::string& name) {
  static const std::unordered_map<std::string, TestFn> kTests = {
      {"defined", Plain<Defined>},
      {"undefined", Plain<Undefined>},
      {"none", Plain<IsNone>},
      {"string", Plain<IsText>},
      {"mapping", Plain<IsMapping>},
      {"sequence", Plain<IsSequence>},
      {"iterable", Plain<IsIterable>},
      {"callable", Plain<IsCallable>},
      {"number", Plain<IsNumber>},
      {"integer", Plain<IsInteger>},
      {"float", Plain<IsFloat>},
      {"boolean", Plain<IsBoolean>},
      {"true", Plain<IsTrue>},
      {"false", Plain<IsFalse>},
      {"escaped", Plain<IsEscaped>},
      {"odd", Parity<true>},
      {"even", Parity<false>},
      {"divisibleby", DivisibleBy},
      {"sameas", SameAs},
      {"lower", TextCase<CharClass::kLower>},
      {"upper", TextCase<CharClass::kUpper>},
      {"in", Comparison<Op::kIn>},
      {"eq", Comparison<Op::kEq>},
      {"equalto", Comparison<Op::kEq>},
      {"==", Comparison<Op::kEq>},
      {"ne", Comparison<Op::kNe>},
      {"!=", Comparison<Op::kNe>},
      {"lt", Comparison<Op::kLt>},
      {"lessthan", Comparison<Op::kLt>},
      {"<", Comparison<Op::kLt>},
      {"le", Comparison<Op::kLe>},
      {"<=", Comparison<Op::kLe>},
      {"gt", Comparison<Op::kGt>},
      {"greaterthan", Comparison<Op::kGt>},
      {">", Comparison<Op::kGt>},
      {"ge", Comparison<Op::kGe>},
      {">=", Comparison<Op::kGe>},
      {"filter", IsFilter},
      {"test", IsTestName},
  };
  const auto it = kTests.find(name);
  return it == kTests.end() ? nullptr : it->second;
}

}  // namespace sage::jinja
