// The methods of strings, dicts, lists and tuples.
#include <string>
#include <unordered_map>

#include "absl/strings/str_cat.h"
#include "engine/tokenizer/jinja_interpreter.h"
#include "engine/tokenizer/jinja_text.h"
#include "engine/tokenizer/unicode.h"

namespace sage::jinja {
namespace {

using Method = bool (*)(Interpreter&, const Value& self, Args&, Value* out);

template <bool kLeft, bool kRight>
bool StripMethod(Interpreter& in, const Value& self, Args& args, Value* out) {
  const Value* bound[1];
  if (!in.Bind("strip", args, {"chars"}, 0, bound)) return false;
  if (bound[0] == nullptr || bound[0]->is_none()) {
    return in.StepBytes(self.s().size()) && in.Text(std::string(Strip(self.s(), nullptr, kLeft, kRight)), out);
  }
  std::string_view chars;
  if (!in.BindText("strip", bound[0], &chars)) return false;
  // Each stripped character is looked for in the set.
  if (!in.StepBytes(self.s().size() * chars.size())) return false;
  return in.Text(std::string(Strip(self.s(), &chars, kLeft, kRight)), out);
}

bool TextList(Interpreter& in, const std::vector<std::string_view>& parts, Value* out) {
  if (!in.CanItems(parts.size()) || !in.Step(static_cast<int64_t>(parts.size()))) return false;
  std::vector<Value> items(parts.size());
  for (size_t i = 0; i < parts.size(); ++i) {
    if (!in.Text(std::string(parts[i]), &items[i])) return false;
  }
  return in.List(std::move(items), out);
}

// Searching from the right may compare the whole part at every position.
bool StepBackwards(Runtime& rt, std::string_view text, std::string_view part) {
  return rt.Step(static_cast<int64_t>(text.size() * std::min(part.size(), text.size()) / 4096));
}

template <bool kFromRight>
bool SplitMethod(Interpreter& in, const Value& self, Args& args, Value* out) {
  const Value* bound[2];
  int64_t max_split = -1;
  if (!in.Bind("split", args, {"sep", "maxsplit"}, 0, bound) || !in.BindInt(bound[1], -1, &max_split)) return false;
  if (bound[0] == nullptr || bound[0]->is_none()) return TextList(in, SplitSpace(self.s(), max_split, kFromRight), out);
  std::string_view sep;
  if (!in.BindText("split", bound[0], &sep)) return false;
  if (sep.empty()) return in.Fail("empty separator");
  if (!in.StepBytes(self.s().size()) || (kFromRight && !StepBackwards(in, self.s(), sep))) return false;
  return TextList(in, SplitText(self.s(), sep, max_split, kFromRight), out);
}

bool SplitLinesMethod(Interpreter& in, const Value& self, Args& args, Value* out) {
  const Value* bound[1];
  if (!in.Bind("splitlines", args, {"keepends"}, 0, bound)) return false;
  return TextList(in, SplitLines(self.s(), bound[0] != nullptr && Truthy(*bound[0])), out);
}

// The part of a string between optional character positions `start` and `end`.
bool Window(Interpreter& in, const Value& self, const Value* start, const Value* end, std::string_view* out,
            int64_t* first) {
  const int64_t size = static_cast<int64_t>(self.str().chars);
  const auto place = [&](const Value* v, int64_t fallback, int64_t* at) {
    if (v == nullptr || v->is_none()) {
      *at = fallback;
      return true;
    }
    if (!in.BindInt(v, fallback, at)) return false;
    if (*at < 0) *at = *at < -size ? 0 : *at + size;
    return true;
  };
  int64_t last = 0;
  if (!place(start, 0, first) || !place(end, size, &last)) return false;
  last = std::min(last, size);
  if (*first > last) {
    *out = std::string_view();
    return true;
  }
  const std::string_view text = self.s();
  const bool ascii = self.str().ascii();
  const size_t begin = ascii ? static_cast<size_t>(*first) : CharOffset(text, *first);
  const size_t length = ascii ? static_cast<size_t>(last - *first) : CharOffset(text.substr(begin), last - *first);
  *out = text.substr(begin, length);
  return in.StepBytes(text.size());
}

template <bool kStart>
bool AffixMethod(Interpreter& in, const Value& self, Args& args, Value* out) {
  const Value* bound[3];
  const char* name = kStart ? "startswith" : "endswith";
  std::string_view text;
  int64_t first = 0;
  if (!in.Bind(name, args, {"prefix", "start", "end"}, 1, bound)) return false;
  if (!Window(in, self, bound[1], bound[2], &text, &first)) return false;
  std::vector<Value> one(1, *bound[0]);
  const std::vector<Value>& affixes = bound[0]->Is(Type::kTuple) ? bound[0]->items() : one;
  bool found = false;
  for (const Value& affix : affixes) {
    std::string_view part;
    if (!in.BindText(name, &affix, &part)) return false;
    if (!in.Step(1 + static_cast<int64_t>(part.size() / 64))) return false;
    found = found || (kStart ? text.starts_with(part) : text.ends_with(part));
  }
  const bool outside = first > static_cast<int64_t>(self.str().chars);
  *out = Value::Bool(found && !outside);
  return true;
}

enum class Search { kFind, kRfind, kIndex, kRindex, kCount };

template <Search kWhat>
bool SearchMethod(Interpreter& in, const Value& self, Args& args, Value* out) {
  const Value* bound[3];
  std::string_view text;
  std::string_view part;
  int64_t first = 0;
  if (!in.Bind("find", args, {"sub", "start", "end"}, 1, bound) || !in.BindText("find", bound[0], &part)) return false;
  if (!Window(in, self, bound[1], bound[2], &text, &first)) return false;
  const bool outside = first > static_cast<int64_t>(self.str().chars);
  if (kWhat == Search::kCount) {
    int64_t count = 0;
    if (part.empty()) {
      count = outside ? 0 : static_cast<int64_t>(CountChars(text)) + 1;
    } else {
      for (size_t at = FindText(text, part); at != std::string_view::npos; at = FindText(text, part, at + part.size()))
        ++count;
    }
    *out = Value::Int(count);
    return true;
  }
  const bool right = kWhat == Search::kRfind || kWhat == Search::kRindex;
  if (right && !StepBackwards(in, text, part)) return false;
  const size_t at = outside ? std::string_view::npos : right ? text.rfind(part) : FindText(text, part);
  if (at != std::string_view::npos) {
    *out = Value::Int(first + static_cast<int64_t>(CountChars(text.substr(0, at))));
    return true;
  }
  if (kWhat == Search::kIndex || kWhat == Search::kRindex) return in.Fail("substring not found");
  *out = Value::Int(-1);
  return true;
}

template <Case kCase>
bool CaseMethod(Interpreter& in, const Value& self, Args& args, Value* out) {
  if (!in.Bind("upper", args, {}, 0, nullptr)) return false;
  return in.StepBytes(self.s().size() * 4) && in.Text(ConvertCase(self.s(), kCase), out);
}

template <CharClass kClass>
bool ClassMethod(Interpreter& in, const Value& self, Args& args, Value* out) {
  if (!in.Bind("isalpha", args, {}, 0, nullptr) || !in.StepBytes(self.s().size() * 4)) return false;
  *out = Value::Bool(AllOfClass(self.s(), kClass));
  return true;
}

bool JoinMethod(Interpreter& in, const Value& self, Args& args, Value* out) {
  const Value* bound[1];
  Value list;
  if (!in.Bind("join", args, {"iterable"}, 1, bound) || !Iterate(in, *bound[0], &list)) return false;
  std::string text;
  bool first = true;
  for (const Value& item : list.items()) {
    std::string_view part;
    if (!in.BindText("join", &item, &part) || !in.Step() || !in.StepBytes(part.size() + self.s().size())) return false;
    if (!in.CanText(text.size() + part.size() + self.s().size())) return false;
    if (!first) text += self.s();
    first = false;
    text.append(part);
  }
  return in.Text(std::move(text), out);
}

bool FormatMethod(Interpreter& in, const Value& self, Args& args, Value* out) {
  return FormatBraces(in, self.s(), args, out);
}

enum class Align { kLeft, kRight, kCenter, kZero };

template <Align kAlign>
bool PadMethod(Interpreter& in, const Value& self, Args& args, Value* out) {
  const Value* bound[2];
  int64_t width = 0;
  std::string_view fill = kAlign == Align::kZero ? "0" : " ";
  if (!in.Bind("center", args, {"width", "fillchar"}, 1, bound) || !in.BindInt(bound[0], 0, &width)) return false;
  if (bound[1] != nullptr && !in.BindText("center", bound[1], &fill)) return false;
  if (CountChars(fill) != 1) return in.Fail("The fill character must be exactly one character long");
  const int64_t pad = width - static_cast<int64_t>(self.str().chars);
  if (width < 0 || pad <= 0) return in.Text(self.s(), out);
  if (!in.CanText(static_cast<size_t>(pad)) || !in.CanText(static_cast<size_t>(pad) * fill.size())) return false;
  int64_t left = kAlign == Align::kLeft ? 0 : pad;
  if (kAlign == Align::kCenter) left = pad / 2 + (pad & width & 1);
  std::string text;
  size_t sign = 0;
  if (kAlign == Align::kZero && !self.s().empty() && (self.s()[0] == '-' || self.s()[0] == '+')) sign = 1;
  text.append(self.s(), 0, sign);
  for (int64_t i = 0; i < left; ++i) text.append(fill);
  text.append(self.s(), sign);
  for (int64_t i = left; i < pad; ++i) text.append(fill);
  return in.Text(std::move(text), out);
}

template <bool kPrefix>
bool RemoveMethod(Interpreter& in, const Value& self, Args& args, Value* out) {
  const Value* bound[1];
  std::string_view part;
  if (!in.Bind("removeprefix", args, {"prefix"}, 1, bound) || !in.BindText("removeprefix", bound[0], &part)) {
    return false;
  }
  std::string_view text = self.s();
  if (kPrefix && text.starts_with(part)) text.remove_prefix(part.size());
  if (!kPrefix && text.ends_with(part)) text.remove_suffix(part.size());
  return in.Text(std::string(text), out);
}

bool ReplaceMethod(Interpreter& in, const Value& self, Args& args, Value* out) {
  const Value* bound[3];
  std::string_view from;
  std::string_view to;
  int64_t count = -1;
  if (!in.Bind("replace", args, {"old", "new", "count"}, 2, bound)) return false;
  if (!in.BindText("replace", bound[0], &from) || !in.BindText("replace", bound[1], &to)) return false;
  if (bound[2] != nullptr && !bound[2]->is_none() && !in.BindInt(bound[2], -1, &count)) return false;
  return ReplaceText(in, self.s(), from, to, count, out);
}

enum class View { kItems, kKeys, kValues };

template <View kView>
bool ViewMethod(Interpreter& in, const Value& self, Args& args, Value* out) {
  if (!in.Bind("items", args, {}, 0, nullptr)) return false;
  return DictView(in, self,
                  kView == View::kItems  ? Type::kItems
                  : kView == View::kKeys ? Type::kKeys
                                         : Type::kDictValues,
                  out);
}

bool GetMethod(Interpreter& in, const Value& self, Args& args, Value* out) {
  const Value* bound[2];
  if (!in.Bind("get", args, {"key", "default"}, 1, bound)) return false;
  if (!Hashable(*bound[0])) return in.Fail("unhashable key");
  if (!in.Step(Weight(*bound[0]))) return false;
  const Value* found = self.dict().Find(*bound[0]);
  *out = found != nullptr ? *found : bound[1] != nullptr ? *bound[1] : Value::None();
  return true;
}

bool CopyMethod(Interpreter& in, const Value& self, Args& args, Value* out) {
  *out = self;  // values do not change, so a copy cannot be told from the original
  return in.Bind("copy", args, {}, 0, nullptr);
}

bool ForbiddenMethod(Interpreter& in, const Value& self, Args& args, Value* out) {
  return in.Fail(absl::StrCat("a method that changes a '", std::string(TypeName(self.type())),
                              "' object is unsafe in a template"));
}

bool IndexMethod(Interpreter& in, const Value& self, Args& args, Value* out) {
  const Value* bound[3];
  if (!in.Bind("index", args, {"value", "start", "stop"}, 1, bound) || !in.Step(Weight(self))) return false;
  const auto& items = self.items();
  const int64_t size = static_cast<int64_t>(items.size());
  int64_t start = 0;
  int64_t stop = size;
  if (!in.BindInt(bound[1], 0, &start) || !in.BindInt(bound[2], size, &stop)) return false;
  if (start < 0) start = std::max<int64_t>(0, start < -size ? 0 : start + size);
  if (stop < 0) stop = stop < -size ? 0 : stop + size;
  for (int64_t i = start; i < std::min(stop, size); ++i) {
    if (Equals(items[i], *bound[0])) {
      *out = Value::Int(i);
      return true;
    }
  }
  return in.Fail("the value is not in the list");
}

bool CountMethod(Interpreter& in, const Value& self, Args& args, Value* out) {
  const Value* bound[1];
  if (!in.Bind("count", args, {"value"}, 1, bound) || !in.Step(Weight(self))) return false;
  int64_t count = 0;
  for (const Value& item : self.items()) count += Equals(item, *bound[0]) ? 1 : 0;
  *out = Value::Int(count);
  return true;
}

struct MethodRow {
  char owner;  // s: string, d: dict, l: list, t: list and tuple
  const char* name;
  Method method;
};

constexpr MethodRow kMethods[] = {
    {'s', "strip", StripMethod<true, true>},
    {'s', "lstrip", StripMethod<true, false>},
    {'s', "rstrip", StripMethod<false, true>},
    {'s', "split", SplitMethod<false>},
    {'s', "rsplit", SplitMethod<true>},
    {'s', "splitlines", SplitLinesMethod},
    {'s', "startswith", AffixMethod<true>},
    {'s', "endswith", AffixMethod<false>},
    {'s', "find", SearchMethod<Search::kFind>},
    {'s', "rfind", SearchMethod<Search::kRfind>},
    {'s', "index", SearchMethod<Search::kIndex>},
    {'s', "rindex", SearchMethod<Search::kRindex>},
    {'s', "count", SearchMethod<Search::kCount>},
    {'s', "upper", CaseMethod<Case::kUpper>},
    {'s', "lower", CaseMethod<Case::kLower>},
    {'s', "casefold", CaseMethod<Case::kLower>},
    {'s', "title", CaseMethod<Case::kTitle>},
    {'s', "capitalize", CaseMethod<Case::kCapitalize>},
    {'s', "isalpha", ClassMethod<CharClass::kAlpha>},
    {'s', "isdigit", ClassMethod<CharClass::kDigit>},
    {'s', "isalnum", ClassMethod<CharClass::kAlnum>},
    {'s', "isspace", ClassMethod<CharClass::kSpace>},
    {'s', "isupper", ClassMethod<CharClass::kUpper>},
    {'s', "islower", ClassMethod<CharClass::kLower>},
    {'s', "join", JoinMethod},
    {'s', "format", FormatMethod},
    {'s', "ljust", PadMethod<Align::kLeft>},
    {'s', "rjust", PadMethod<Align::kRight>},
    {'s', "center", PadMethod<Align::kCenter>},
    {'s', "zfill", PadMethod<Align::kZero>},
    {'s', "removeprefix", RemoveMethod<true>},
    {'s', "removesuffix", RemoveMethod<false>},
    {'s', "replace", ReplaceMethod},
    {'d', "items", ViewMethod<View::kItems>},
    {'d', "keys", ViewMethod<View::kKeys>},
    {'d', "values", ViewMethod<View::kValues>},
    {'d', "get", GetMethod},
    {'d', "copy", CopyMethod},
    {'d', "update", ForbiddenMethod},
    {'d', "pop", ForbiddenMethod},
    {'d', "popitem", ForbiddenMethod},
    {'d', "clear", ForbiddenMethod},
    {'d', "setdefault", ForbiddenMethod},
    {'l', "copy", CopyMethod},
    {'t', "index", IndexMethod},
    {'t', "count", CountMethod},
    {'l', "append", ForbiddenMethod},
    {'l', "extend", ForbiddenMethod},
    {'l', "insert", ForbiddenMethod},
    {'l', "pop", ForbiddenMethod},
    {'l', "remove", ForbiddenMethod},
    {'l', "clear", ForbiddenMethod},
    {'l', "reverse", ForbiddenMethod},
    {'l', "sort", ForbiddenMethod},
};

const std::unordered_map<std::string_view, int64_t>& MethodsOf(Type type) {
  using Table = std::unordered_map<std::string_view, int64_t>;
  static const auto make = [](std::string_view owners) {
    Table table;
    for (size_t i = 0; i < std::size(kMethods); ++i) {
      if (owners.find(kMethods[i].owner) != std::string_view::npos) table[kMethods[i].name] = static_cast<int64_t>(i);
    }
    return table;
  };
  static const Table strings = make("s");
  static const Table dicts = make("d");
  static const Table lists = make("lt");
  static const Table tuples = make("t");
  static const Table none;
  switch (type) {
    case Type::kString:
      return strings;
    case Type::kDict:
      return dicts;
    case Type::kList:
      return lists;
    case Type::kTuple:
    case Type::kRange:
      return tuples;
    default:
      return none;
  }
}

}  // namespace

int64_t FindMethod(Type type, std::string_view name) {
  if (type == Type::kLoop || type == Type::kCycler) return FindStateMethod(type, name);
  const auto& methods = MethodsOf(type);
  const auto it = methods.find(name);
  return it == methods.end() ? -1 : it->second;
}

bool Interpreter::CallMethod(const Value& self, int64_t method, Args& args, Value* out) {
  return kMethods[method].method(*this, self, args, out);
}

bool DictView(Runtime& rt, const Value& dict, Type type, Value* out) {
  std::vector<Value> items;
  items.reserve(dict.dict().entries.size());
  for (const auto& [key, value] : dict.dict().entries) {
    Value item = type == Type::kKeys ? key : value;
    if (type == Type::kItems && !rt.List({key, value}, &item, Type::kTuple)) return false;
    items.push_back(std::move(item));
  }
  return rt.List(std::move(items), out, type);
}

bool ReplaceText(Runtime& rt, std::string_view text, std::string_view from, std::string_view to, int64_t count,
                 Value* out) {
  std::string result;
  size_t at = 0;
  for (int64_t done = 0; count < 0 || done < count; ++done) {
    size_t next = FindText(text, from, at);
    if (from.empty()) {  // before every character and at the end
      if (done > 0) {
        if (at >= text.size()) break;
        const size_t size = DecodeUtf8(text, at).size;
        result.append(text.substr(at, size));
        at += size;
      }
      next = at;
    }
    if (next == std::string_view::npos) break;
    if (!rt.CanText(result.size() + (next - at) + to.size()) || !rt.StepBytes(to.size() + 64)) return false;
    result.append(text.substr(at, next - at));
    result.append(to);
    at = next + from.size();
  }
  if (!rt.CanText(result.size() + text.size() - at)) return false;
  result.append(text.substr(at));
  return rt.Text(std::move(result), out);
}

}  // namespace sage::jinja
