// Operators, attribute and item access, slices.
#include <cmath>

#include "absl/strings/str_cat.h"
#include "engine/tokenizer/jinja_interpreter.h"
#include "engine/tokenizer/jinja_text.h"

namespace sage::jinja {
namespace {

constexpr const char* kOpNames[] = {"+", "-", "*", "/", "//", "%", "** or pow()", "==", "!=", "<", "<=", ">", ">="};

bool Overflow(Runtime& rt) { return rt.Fail("integer overflow: a result must fit in 64 bits"); }

bool IntegerPower(Runtime& rt, int64_t base, int64_t exponent, Value* out) {
  if (exponent < 0) {
    if (base == 0) return rt.Fail("0.0 cannot be raised to a negative power");
    *out = Value::Float(std::pow(static_cast<double>(base), static_cast<double>(exponent)));
    return true;
  }
  int64_t result = 1;
  while (exponent > 0) {
    if ((exponent & 1) != 0 && __builtin_mul_overflow(result, base, &result)) return Overflow(rt);
    exponent >>= 1;
    if (exponent > 0 && __builtin_mul_overflow(base, base, &base)) return Overflow(rt);
  }
  *out = Value::Int(result);
  return true;
}

bool IntegerOp(Runtime& rt, Op op, int64_t a, int64_t b, Value* out) {
  int64_t result = 0;
  switch (op) {
    case Op::kAdd:
      if (__builtin_add_overflow(a, b, &result)) return Overflow(rt);
      break;
    case Op::kSub:
      if (__builtin_sub_overflow(a, b, &result)) return Overflow(rt);
      break;
    case Op::kMul:
      if (__builtin_mul_overflow(a, b, &result)) return Overflow(rt);
      break;
    case Op::kDiv:
      if (b == 0) return rt.Fail("division by zero");
      *out = Value::Float(static_cast<double>(a) / static_cast<double>(b));
      return true;
    case Op::kFloorDiv:
    case Op::kMod:
      if (b == 0) return rt.Fail("integer division or modulo by zero");
      if (b == -1) {  // INT64_MIN // -1 does not fit
        if (op == Op::kMod) break;
        if (__builtin_sub_overflow(int64_t{0}, a, &result)) return Overflow(rt);
        break;
      }
      result = op == Op::kMod ? a % b : a / b;
      if (a % b != 0 && (a < 0) != (b < 0)) result += op == Op::kMod ? b : -1;
      break;
    case Op::kPow:
      return IntegerPower(rt, a, b, out);
    default:
      return rt.Fail("not an arithmetic operator");
  }
  *out = Value::Int(result);
  return true;
}

bool FloatOp(Runtime& rt, Op op, double a, double b, Value* out) {
  double result = 0;
  switch (op) {
    case Op::kAdd:
      result = a + b;
      break;
    case Op::kSub:
      result = a - b;
      break;
    case Op::kMul:
      result = a * b;
      break;
    case Op::kDiv:
      if (b == 0) return rt.Fail("float division by zero");
      result = a / b;
      break;
    case Op::kFloorDiv:
    case Op::kMod: {
      if (b == 0) return rt.Fail("float floor division or modulo by zero");
      double mod = std::fmod(a, b);
      double div = (a - mod) / b;
      if (mod != 0 && (b < 0) != (mod < 0)) {
        mod += b;
        div -= 1;
      }
      if (mod == 0) mod = std::copysign(0.0, b);
      double floored = std::floor(div);
      if (div - floored > 0.5) floored += 1;
      if (div == 0) floored = std::copysign(0.0, a / b);
      result = op == Op::kMod ? mod : floored;
      break;
    }
    case Op::kPow:
      if (a == 0 && b < 0) return rt.Fail("0.0 cannot be raised to a negative power");
      result = std::pow(a, b);
      if (std::isnan(result) && !std::isnan(a) && !std::isnan(b)) return rt.Fail("the power is not a real number");
      if (std::isinf(result) && !std::isinf(a) && !std::isinf(b)) return rt.Fail("numerical result out of range");
      break;
    default:
      return rt.Fail("not an arithmetic operator");
  }
  *out = Value::Float(result);
  return true;
}

bool AddTexts(Runtime& rt, const Value& a, const Value& b, Value* out) {
  const bool markup = a.special() || b.special();
  std::string text;
  if (!rt.CanText(a.s().size() + b.s().size())) return false;
  text.reserve(a.s().size() + b.s().size());
  text += markup && !a.special() ? EscapeHtml(a.s()) : a.s();
  text += markup && !b.special() ? EscapeHtml(b.s()) : b.s();
  if (!rt.Text(std::move(text), out)) return false;
  out->set_special(markup);
  return true;
}

bool Repeat(Runtime& rt, const Value& sequence, int64_t times, Value* out) {
  const size_t n = times < 0 ? 0 : static_cast<size_t>(times);
  if (sequence.is_string()) {
    const std::string& s = sequence.s();
    if (!s.empty() && n > rt.budget.max_string / s.size()) return rt.LimitHit("length of a text");
    std::string text;
    if (!s.empty()) text.reserve(s.size() * n);
    for (size_t i = 0; i < n && !s.empty(); ++i) text += s;
    if (!rt.Text(std::move(text), out)) return false;
    out->set_special(sequence.special());
    return true;
  }
  const auto& list = sequence.items();
  if (!list.empty() && n > rt.budget.max_items / list.size()) return rt.LimitHit("items of a list");
  if (!rt.Step(static_cast<int64_t>(list.size() * n))) return false;
  std::vector<Value> items;
  items.reserve(list.size() * n);
  for (size_t i = 0; i < n && !list.empty(); ++i) items.insert(items.end(), list.begin(), list.end());
  return rt.List(std::move(items), out, sequence.type());
}

bool Repeatable(const Value& v) { return v.is_string() || v.Is(Type::kList) || v.Is(Type::kTuple); }

// The bound of a slice within [low, high], Python's rule for negatives.
int64_t Clamp(int64_t index, int64_t length, int64_t low, int64_t high) {
  if (index < 0) index = index < -length ? -1 - length : index;
  if (index < 0) index += length;
  return index < low ? low : index > high ? high : index;
}

}  // namespace

bool Interpreter::Binary(Op op, const Value& a, const Value& b, Value* out) {
  if (a.is_undefined()) return FailUndefined(*this, a);
  if (op == Op::kMod && a.is_string()) {
    Args args;
    if (b.Is(Type::kTuple)) {
      args.list = b.items();
    } else {
      args.list.push_back(b);
    }
    return FormatPercent(*this, a.s(), args, out);
  }
  if (b.is_undefined()) return FailUndefined(*this, b);
  if (a.is_integer() && b.is_integer()) return IntegerOp(*this, op, a.i(), b.i(), out);
  if (a.is_number() && b.is_number()) {
    if (a.Is(Type::kBigUint) || b.Is(Type::kBigUint)) return Overflow(*this);
    return FloatOp(*this, op, a.AsDouble(), b.AsDouble(), out);
  }
  if (op == Op::kAdd && a.is_string() && b.is_string()) return AddTexts(*this, a, b, out);
  if (op == Op::kAdd && a.type() == b.type() && (a.Is(Type::kList) || a.Is(Type::kTuple))) {
    const auto& more = b.items();
    if (!CanItems(a.items().size() + more.size()) ||
        !Step(static_cast<int64_t>((a.items().size() + more.size()) / 4))) {
      return false;
    }
    std::vector<Value> items;
    items.reserve(a.items().size() + more.size());
    items.insert(items.end(), a.items().begin(), a.items().end());
    items.insert(items.end(), more.begin(), more.end());
    return List(std::move(items), out, a.type());
  }
  if (op == Op::kMul && Repeatable(a) && b.is_integer()) return Repeat(*this, a, b.i(), out);
  if (op == Op::kMul && Repeatable(b) && a.is_integer()) return Repeat(*this, b, a.i(), out);
  return Fail(absl::StrCat("unsupported operand type(s) for ", kOpNames[static_cast<int>(op)], ": '",
                           std::string(TypeName(a.type())), "' and '", std::string(TypeName(b.type())), "'"));
}

bool Interpreter::Compare(Op op, const Value& a, const Value& b, bool* out) {
  switch (op) {
    case Op::kEq:
    case Op::kNe:
      if (!Step(std::min(Weight(a), Weight(b)))) return false;
      *out = Equals(a, b) == (op == Op::kEq);
      return true;
    case Op::kLt:
      return Less(*this, a, b, out, "<");
    case Op::kGt:
      return Less(*this, b, a, out, ">");
    case Op::kLe:
    case Op::kGe: {
      const Value& low = op == Op::kLe ? a : b;
      const Value& high = op == Op::kLe ? b : a;
      if (!Less(*this, low, high, out, op == Op::kLe ? "<=" : ">=")) return false;
      if (!Step(std::min(Weight(a), Weight(b)))) return false;
      *out = *out || Equals(low, high);
      return true;
    }
    case Op::kIn:
    case Op::kNotIn:
      if (!Contains(*this, b, a, out)) return false;
      *out = *out == (op == Op::kIn);
      return true;
    default:
      return Fail("not a comparison");
  }
}

// Dict entries, list items and characters; *found is false when there is none.
bool Interpreter::SequenceItem(const Value& object, const Value& key, Value* out, bool* found) {
  *found = false;
  if (object.Is(Type::kDict)) {
    if (!Hashable(key)) return true;
    if (!Step(Weight(key))) return false;
    if (const Value* value = object.dict().Find(key)) {
      *out = *value;
      *found = true;
    }
    return true;
  }
  if (!key.is_integer()) return true;
  if (object.is_sequence()) {
    const auto& items = object.items();
    const int64_t size = static_cast<int64_t>(items.size());
    const int64_t at = key.i() < 0 ? key.i() + size : key.i();
    if (at < 0 || at >= size) return true;
    *out = items[at];
    *found = true;
  } else if (object.is_string()) {
    const int64_t size = static_cast<int64_t>(object.str().chars);
    const int64_t at = key.i() < 0 ? key.i() + size : key.i();
    if (at < 0 || at >= size) return true;
    *found = true;
    return Slice(object, Value::Int(at), Value::Int(at + 1), Value::None(), out);
  }
  return true;
}

bool Interpreter::Item(const Value& object, const Value& key, Value* out) {
  if (object.is_undefined()) return FailUndefined(*this, object);
  bool found = false;
  if (!SequenceItem(object, key, out, &found)) return false;
  if (found) return true;
  if (key.is_string()) return Attribute(object, key, out);
  Value text;
  std::string repr;
  if (!AppendRepr(*this, key, &repr) || !Text(std::move(repr), &text)) return false;
  *out = Value::Undefined(static_cast<StrObj*>(text.obj()), object.type());
  return true;
}

bool Interpreter::Attribute(const Value& object, const Value& name, Value* out) {
  if (object.is_undefined()) return FailUndefined(*this, object);
  const std::string& text = name.s();
  const int64_t method = FindMethod(object.type(), text);
  if (method >= 0) {
    Ref<MethodObj> bound(new MethodObj);
    bound->self = object;
    *out = Value::Object(Type::kMethod, bound.get(), method);
    return Own(bound.get(), 64) && CanHold(object, bound.get());
  }
  const Value* found = nullptr;
  if (object.Is(Type::kDict)) {
    found = object.dict().FindText(text);
  } else if (object.Is(Type::kNamespace)) {
    found = static_cast<NamespaceObj*>(object.obj())->attributes.FindText(text);
  } else if (object.Is(Type::kLoop)) {
    if (!LoopAttribute(static_cast<LoopObj*>(object.obj()), text, out)) return false;
    if (out->present()) return true;
  } else if (object.Is(Type::kTuple) && object.special() && (text == "grouper" || text == "list")) {
    found = &object.items()[text == "list" ? 1 : 0];
  } else if (object.Is(Type::kMacro) && text == "name") {
    return Text(static_cast<MacroObj*>(object.obj())->name, out);
  } else if (object.Is(Type::kCycler) && text == "current") {
    const auto* cycler = static_cast<CyclerObj*>(object.obj());
    found = &cycler->list.items()[cycler->at];
  }
  *out = found != nullptr ? *found : Value::Undefined(static_cast<StrObj*>(name.obj()), object.type());
  return true;
}

bool Interpreter::Slice(const Value& object, const Value& start, const Value& stop, const Value& step, Value* out) {
  if (object.is_undefined()) return FailUndefined(*this, object);
  for (const Value* part : {&start, &stop, &step}) {
    if (part->is_none() || part->is_integer()) continue;
    if (part->is_undefined()) return FailUndefined(*this, *part);
    return Fail("slice indices must be integers or None");
  }
  if (!object.is_string() && !object.is_sequence()) {
    *out = Value::Undefined(nullptr, object.type());
    return true;
  }
  int64_t size = 0;
  if (!Length(*this, object, &size)) return false;
  const int64_t by = step.is_none() ? 1 : step.i();
  if (by == 0) return Fail("slice step cannot be zero");
  const bool forward = by > 0;
  const int64_t low = forward ? 0 : -1;
  const int64_t high = forward ? size : size - 1;
  const int64_t first = start.is_none() ? (forward ? low : high) : Clamp(start.i(), size, low, high);
  const int64_t last = stop.is_none() ? (forward ? high : low) : Clamp(stop.i(), size, low, high);
  if (object.is_string() && by == 1) {
    const std::string_view text = object.s();
    if (first >= last) return Text("", out);
    if (object.str().ascii()) return Text(std::string(text.substr(first, last - first)), out);
    const size_t begin = CharOffset(text, first);
    const size_t length = CharOffset(text.substr(begin), last - first);
    return StepBytes(begin + length) && Text(std::string(text.substr(begin, length)), out);
  }
  Value list;
  if (!Iterate(*this, object, &list)) return false;
  std::vector<Value> items;
  for (int64_t at = first; forward ? at < last : at > last;) {
    items.push_back(list.items()[at]);
    if (__builtin_add_overflow(at, by, &at)) break;
  }
  if (!Step(static_cast<int64_t>(items.size()))) return false;
  if (!object.is_string()) return List(std::move(items), out, object.Is(Type::kTuple) ? Type::kTuple : Type::kList);
  std::string text;
  for (const Value& item : items) text += item.s();
  return Text(std::move(text), out);
}

}  // namespace sage::jinja
