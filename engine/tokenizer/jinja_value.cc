// Comparison, hashing, iteration and text of values, with Python's rules.
#include "engine/tokenizer/jinja_value.h"

#include <cmath>
#include <functional>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "engine/tokenizer/jinja_objects.h"
#include "engine/tokenizer/jinja_text.h"
#include "engine/tokenizer/unicode.h"

namespace sage::jinja {
namespace {

size_t Hash(const Value& v) {
  switch (v.type()) {
    case Type::kBool:
    case Type::kInt:
      return std::hash<double>()(static_cast<double>(v.i()));
    case Type::kBigUint:
    case Type::kFloat:
      return std::hash<double>()(v.AsDouble());
    case Type::kString:
      return std::hash<std::string>()(v.s());
    case Type::kTuple: {
      size_t h = 0x9E3779B97F4A7C15u;
      for (const Value& item : v.items()) h = h * 1000003u ^ Hash(item);
      return h;
    }
    default:
      return static_cast<size_t>(v.type());
  }
}

// -1, 0, 1; 2 when a NaN is involved.
int CompareNumbers(const Value& a, const Value& b) {
  if (a.is_integer() && b.is_integer()) return a.i() < b.i() ? -1 : a.i() > b.i();
  if (a.Is(Type::kBigUint) && b.Is(Type::kBigUint)) return a.u() < b.u() ? -1 : a.u() > b.u();
  if (a.Is(Type::kBigUint) && b.is_integer()) return 1;
  if (a.is_integer() && b.Is(Type::kBigUint)) return -1;
  const double x = a.AsDouble();
  const double y = b.AsDouble();
  if (std::isnan(x) || std::isnan(y)) return 2;
  if (x != y) return x < y ? -1 : 1;
  // Equal as doubles; a 64-bit integer may still differ from the float.
  if (a.is_integer() && std::abs(x) < 9.2e18)
    return a.i() < static_cast<int64_t>(y) ? -1 : a.i() > static_cast<int64_t>(y);
  if (b.is_integer() && std::abs(y) < 9.2e18)
    return static_cast<int64_t>(x) < b.i() ? -1 : static_cast<int64_t>(x) > b.i();
  return 0;
}

bool SameItems(const std::vector<Value>& a, const std::vector<Value>& b) {
  if (a.size() != b.size()) return false;
  for (size_t i = 0; i < a.size(); ++i) {
    if (!Equals(a[i], b[i])) return false;
  }
  return true;
}

bool AppendItems(Runtime& rt, const std::vector<Value>& items, std::string_view open, std::string_view close,
                 std::string* out, int depth) {
  *out += open;
  bool first = true;
  for (const Value& item : items) {
    if (!first) *out += ", ";
    first = false;
    if (!AppendRepr(rt, item, out, depth + 1)) return false;
  }
  *out += close;
  return true;
}

bool AppendDict(Runtime& rt, const std::vector<std::pair<Value, Value>>& entries, std::string* out, int depth) {
  *out += '{';
  bool first = true;
  for (const auto& [key, value] : entries) {
    if (!first) *out += ", ";
    first = false;
    if (!AppendRepr(rt, key, out, depth + 1)) return false;
    *out += ": ";
    if (!AppendRepr(rt, value, out, depth + 1)) return false;
  }
  *out += '}';
  return true;
}

}  // namespace

StrObj::StrObj(std::string text) : s(std::move(text)), chars(CountChars(s)) {}

const Value* DictObj::Find(const Value& key) const {
  if (entries.size() < kLinear) {
    for (const auto& entry : entries) {
      if (Equals(entry.first, key)) return &entry.second;
    }
    return nullptr;
  }
  const auto [begin, end] = index.equal_range(Hash(key));
  for (auto it = begin; it != end; ++it) {
    if (Equals(entries[it->second].first, key)) return &entries[it->second].second;
  }
  return nullptr;
}

const Value* DictObj::FindText(std::string_view key) const {
  if (entries.size() < kLinear) {
    for (const auto& entry : entries) {
      if (entry.first.is_string() && entry.first.s() == key) return &entry.second;
    }
    return nullptr;
  }
  const auto [begin, end] = index.equal_range(std::hash<std::string_view>()(key));
  for (auto it = begin; it != end; ++it) {
    const auto& entry = entries[it->second];
    if (entry.first.is_string() && entry.first.s() == key) return &entry.second;
  }
  return nullptr;
}

void DictObj::Set(const Value& key, Value value) {
  if (const Value* old = Find(key)) {
    *const_cast<Value*>(old) = std::move(value);
    return;
  }
  Append(key, std::move(value));
}

void DictObj::Append(const Value& key, Value value) {
  entries.emplace_back(key, std::move(value));
  if (entries.size() < kLinear) return;
  for (size_t i = entries.size() == kLinear ? 0 : entries.size() - 1; i < entries.size(); ++i) {
    index.emplace(Hash(entries[i].first), static_cast<uint32_t>(i));
  }
}

bool Runtime::Error(std::string_view reason, std::string_view message) {
  if (status_.ok()) {
    status_ = MakeError(absl::StatusCode::kInvalidArgument, reason,
                        absl::StrCat("chat template: line ", line, ": ", std::string(message.substr(0, 2000))));
  }
  return false;
}

bool Runtime::Fail(std::string_view message) { return Error("CHAT_TEMPLATE_ERROR", message); }
bool Runtime::Raise(std::string_view message) { return Error("CHAT_TEMPLATE_RAISED", message); }
bool Runtime::LimitHit(std::string_view message) {
  return Error("CHAT_TEMPLATE_LIMIT", absl::StrCat("rendering passes the limit on ", std::string(message)));
}

bool Runtime::Own(Obj* obj, int64_t bytes) {
  obj->budget = &budget;
  obj->charged = bytes;
  budget.live += bytes;
  return budget.live <= budget.max_live || LimitHit("memory");
}

bool Runtime::Text(std::string text, Value* out) {
  const size_t bytes = text.size();
  if (!CanText(bytes) || !StepBytes(bytes)) return false;
  *out = Value::Object(Type::kString, new StrObj(std::move(text)));
  return Own(out->obj(), static_cast<int64_t>(bytes) + 96);
}

bool Runtime::List(std::vector<Value> items, Value* out, Type type, int64_t extra) {
  if (!CanItems(items.size()) || !Step(static_cast<int64_t>(items.size() / 4))) return false;
  uint16_t depth = 0;
  int64_t weight = 1;
  for (const Value& item : items) {
    if (item.obj() != nullptr && item.obj()->depth > depth) depth = item.obj()->depth;
    weight += Weight(item);
  }
  if (depth >= kMaxValueDepth || weight > kMaxValueWeight) return LimitHit("nesting of values");
  auto* list = new ListObj;
  list->depth = depth + 1;
  list->weight = weight;
  list->items = std::move(items);
  const int64_t bytes = 96 + static_cast<int64_t>(list->items.capacity() * sizeof(Value));
  *out = Value::Object(type, list, extra);
  return Own(list, bytes);
}

bool Runtime::Dict(Ref<DictObj> dict, Value* out) {
  const size_t size = dict->entries.size();
  if (!CanItems(size) || !Step(static_cast<int64_t>(size))) return false;
  uint16_t depth = 0;
  int64_t weight = 1;
  for (const auto& [key, value] : dict->entries) {
    if (key.obj() != nullptr) depth = std::max(depth, key.obj()->depth);
    if (value.obj() != nullptr) depth = std::max(depth, value.obj()->depth);
    weight += Weight(key) + Weight(value);
  }
  if (depth >= kMaxValueDepth || weight > kMaxValueWeight) return LimitHit("nesting of values");
  dict->depth = depth + 1;
  dict->weight = weight;
  *out = Value::Object(Type::kDict, dict.get());
  return Own(dict.get(), 160 + static_cast<int64_t>(size * (2 * sizeof(Value) + 32)));
}

std::string_view TypeName(Type type) {
  switch (type) {
    case Type::kNone:
      return "NoneType";
    case Type::kBool:
      return "bool";
    case Type::kInt:
    case Type::kBigUint:
      return "int";
    case Type::kFloat:
      return "float";
    case Type::kString:
      return "str";
    case Type::kList:
      return "list";
    case Type::kTuple:
      return "tuple";
    case Type::kRange:
      return "range";
    case Type::kGenerator:
      return "generator";
    case Type::kItems:
      return "dict_items";
    case Type::kKeys:
      return "dict_keys";
    case Type::kDictValues:
      return "dict_values";
    case Type::kDict:
      return "dict";
    case Type::kNamespace:
      return "Namespace";
    case Type::kLoop:
      return "LoopContext";
    case Type::kMacro:
      return "Macro";
    case Type::kCycler:
      return "Cycler";
    case Type::kJoiner:
      return "Joiner";
    case Type::kMethod:
    case Type::kFunction:
      return "function";
    default:
      return "Undefined";
  }
}

std::string UndefinedMessage(const Value& v) {
  if (v.obj() == nullptr) return "undefined value";
  const Type owner = static_cast<Type>(v.i());
  if (owner == Type::kAbsent) return v.s();
  if (owner == Type::kUndefined) return absl::StrCat("'", v.s(), "' is undefined");
  return absl::StrCat("'", std::string(TypeName(owner)), " object' has no attribute '", v.s(), "'");
}

bool FailUndefined(Runtime& rt, const Value& v) { return rt.Fail(UndefinedMessage(v)); }

bool Truthy(const Value& v) {
  switch (v.type()) {
    case Type::kAbsent:
    case Type::kUndefined:
    case Type::kNone:
      return false;
    case Type::kBool:
    case Type::kInt:
      return v.i() != 0;
    case Type::kFloat:
      return v.d() != 0;
    case Type::kString:
      return !v.s().empty();
    case Type::kList:
    case Type::kTuple:
    case Type::kRange:
    case Type::kItems:
    case Type::kKeys:
    case Type::kDictValues:
      return !v.items().empty();
    case Type::kDict:
      return !v.dict().entries.empty();
    default:
      return true;
  }
}

bool Equals(const Value& a, const Value& b) {
  if (a.is_number() && b.is_number()) return CompareNumbers(a, b) == 0;
  if (a.type() != b.type()) return false;
  switch (a.type()) {
    case Type::kAbsent:
    case Type::kUndefined:
    case Type::kNone:
      return true;
    case Type::kString:
      return a.obj() == b.obj() || a.s() == b.s();
    case Type::kList:
    case Type::kTuple:
    case Type::kRange:
    case Type::kKeys:
    case Type::kItems:
      return a.obj() == b.obj() || SameItems(a.items(), b.items());
    case Type::kDict: {
      if (a.obj() == b.obj()) return true;
      if (a.dict().entries.size() != b.dict().entries.size()) return false;
      for (const auto& [key, value] : a.dict().entries) {
        const Value* other = b.dict().Find(key);
        if (other == nullptr || !Equals(value, *other)) return false;
      }
      return true;
    }
    default:
      return a.obj() == b.obj() && a.i() == b.i();
  }
}

bool Hashable(const Value& v) {
  if (v.Is(Type::kList) || v.Is(Type::kDict) || v.Is(Type::kKeys) || v.Is(Type::kItems)) return false;
  if (!v.Is(Type::kTuple)) return true;
  for (const Value& item : v.items()) {
    if (!Hashable(item)) return false;
  }
  return true;
}

bool Less(Runtime& rt, const Value& a, const Value& b, bool* out, std::string_view op) {
  *out = false;
  if (a.is_number() && b.is_number()) {
    *out = CompareNumbers(a, b) == -1;
    return true;
  }
  if (a.is_undefined()) return FailUndefined(rt, a);
  if (b.is_undefined()) return FailUndefined(rt, b);
  if (a.is_string() && b.is_string()) {
    *out = a.s() < b.s();
    return true;
  }
  if (a.type() == b.type() && (a.Is(Type::kList) || a.Is(Type::kTuple))) {
    const auto& x = a.items();
    const auto& y = b.items();
    if (!rt.Step(std::min(Weight(a), Weight(b)))) return false;
    for (size_t i = 0; i < x.size() && i < y.size(); ++i) {
      if (!Equals(x[i], y[i])) return Less(rt, x[i], y[i], out, op);
    }
    *out = x.size() < y.size();
    return true;
  }
  return rt.Fail(absl::StrCat("'", std::string(op), "' not supported between instances of '",
                              std::string(TypeName(a.type())), "' and '", std::string(TypeName(b.type())), "'"));
}

bool Length(Runtime& rt, const Value& v, int64_t* out) {
  if (v.is_string()) {
    *out = static_cast<int64_t>(v.str().chars);
  } else if (v.is_listlike() && !v.Is(Type::kGenerator)) {
    *out = static_cast<int64_t>(v.items().size());
  } else if (v.Is(Type::kDict)) {
    *out = static_cast<int64_t>(v.dict().entries.size());
  } else if (v.is_undefined()) {
    *out = 0;
  } else if (v.Is(Type::kLoop)) {
    *out = static_cast<LoopObj*>(v.obj())->length();
  } else {
    return rt.Fail(absl::StrCat("object of type '", std::string(TypeName(v.type())), "' has no len()"));
  }
  return true;
}

bool Iterate(Runtime& rt, const Value& v, Value* out) {
  if (v.Is(Type::kGenerator)) {
    auto* list = static_cast<ListObj*>(v.obj());
    if (list->consumed) return rt.List({}, out);
    list->consumed = true;
    *out = v;
    return true;
  }
  if (v.is_listlike()) {
    *out = v;
    return true;
  }
  std::vector<Value> items;
  if (v.Is(Type::kDict)) {
    items.reserve(v.dict().entries.size());
    for (const auto& entry : v.dict().entries) items.push_back(entry.first);
    return rt.List(std::move(items), out);
  }
  if (v.is_undefined()) return rt.List({}, out);
  if (v.is_string()) {
    if (!rt.CanItems(v.str().chars) || !rt.Step(static_cast<int64_t>(v.str().chars))) return false;
    items.reserve(v.str().chars);
    const std::string_view text = v.s();
    for (size_t at = 0; at < text.size();) {
      const size_t size = DecodeUtf8(text, at).size;
      Value c;
      if (!rt.Text(std::string(text.substr(at, size)), &c)) return false;
      items.push_back(std::move(c));
      at += size;
    }
    return rt.List(std::move(items), out);
  }
  return rt.Fail(absl::StrCat("'", std::string(TypeName(v.type())), "' object is not iterable"));
}

bool Contains(Runtime& rt, const Value& container, const Value& item, bool* out) {
  *out = false;
  if (container.is_string()) {
    if (item.is_undefined()) return FailUndefined(rt, item);
    if (!item.is_string()) {
      return rt.Fail(
          absl::StrCat("'in <string>' requires string as left operand, not ", std::string(TypeName(item.type()))));
    }
    *out = FindText(container.s(), item.s()) != std::string::npos;
    return rt.StepBytes(container.s().size());
  }
  if (container.Is(Type::kDict)) {
    if (!Hashable(item)) return rt.Fail(absl::StrCat("unhashable type: '", std::string(TypeName(item.type())), "'"));
    *out = container.dict().Find(item) != nullptr;
    return rt.Step(Weight(item));
  }
  if (container.is_undefined()) return true;
  if (!container.is_listlike()) {
    return rt.Fail(absl::StrCat("argument of type '", std::string(TypeName(container.type())), "' is not iterable"));
  }
  Value list;
  if (!Iterate(rt, container, &list) || !rt.Step(Weight(list))) return false;
  for (const Value& other : list.items()) {
    if (Equals(other, item)) {
      *out = true;
      return true;
    }
  }
  return true;
}

bool AppendStr(Runtime& rt, const Value& v, std::string* out) {
  if (v.is_string()) {
    if (!rt.CanText(out->size() + v.s().size()) || !rt.StepBytes(v.s().size())) return false;
    *out += v.s();
    return true;
  }
  if (v.is_undefined()) return true;
  return AppendRepr(rt, v, out);
}

bool AppendRepr(Runtime& rt, const Value& v, std::string* out, int depth) {
  if (depth > kMaxValueDepth) return rt.LimitHit("nesting of values");
  if (!rt.Step() || !rt.CanText(out->size())) return false;
  switch (v.type()) {
    case Type::kNone:
      *out += "None";
      return true;
    case Type::kBool:
      *out += v.b() ? "True" : "False";
      return true;
    case Type::kInt:
      absl::StrAppend(out, v.i());
      return true;
    case Type::kBigUint:
      absl::StrAppend(out, v.u());
      return true;
    case Type::kFloat:
      *out += FloatRepr(v.d());
      return true;
    case Type::kString:
      if (!rt.StepBytes(v.s().size())) return false;
      *out += v.special() ? absl::StrCat("Markup(", StringRepr(v.s()), ")") : StringRepr(v.s());
      return true;
    case Type::kList:
      return AppendItems(rt, v.items(), "[", "]", out, depth);
    case Type::kTuple:
      return AppendItems(rt, v.items(), "(", v.items().size() == 1 ? ",)" : ")", out, depth);
    case Type::kItems:
      return AppendItems(rt, v.items(), "dict_items([", "])", out, depth);
    case Type::kKeys:
      return AppendItems(rt, v.items(), "dict_keys([", "])", out, depth);
    case Type::kDictValues:
      return AppendItems(rt, v.items(), "dict_values([", "])", out, depth);
    case Type::kDict:
      return AppendDict(rt, v.dict().entries, out, depth);
    case Type::kRange:
      *out += RangeRepr(v);
      return true;
    case Type::kUndefined:
    case Type::kAbsent:
      *out += "Undefined";
      return true;
    case Type::kNamespace:
      *out += "<Namespace ";
      if (!AppendDict(rt, static_cast<NamespaceObj*>(v.obj())->attributes.entries, out, depth)) return false;
      *out += '>';
      return true;
    case Type::kLoop: {
      const auto* loop = static_cast<LoopObj*>(v.obj());
      absl::StrAppend(out, "<LoopContext ", loop->at + 1, "/", loop->length(), ">");
      return true;
    }
    case Type::kMacro:
      absl::StrAppend(out, "<Macro ", StringRepr(static_cast<MacroObj*>(v.obj())->name), ">");
      return true;
    default:
      absl::StrAppend(out, "<", std::string(TypeName(v.type())), " object>");
      return true;
  }
}

bool ToText(Runtime& rt, const Value& v, Value* out) {
  if (v.is_string()) {
    *out = v;
    return true;
  }
  std::string text;
  return AppendStr(rt, v, &text) && rt.Text(std::move(text), out);
}

}  // namespace sage::jinja
