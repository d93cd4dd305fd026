// Filters that make text.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "engine/tokenizer/jinja_filters.h"
#include "engine/tokenizer/jinja_text.h"
#include "engine/tokenizer/unicode.h"

namespace sage::jinja {
namespace {

template <Case kCase>
bool CaseFilter(Interpreter& in, const Value& v, Args& args, Value* out) {
  Value text;
  if (!in.Bind("filter", args, {}, 0, nullptr) || !ToText(in, v, &text)) return false;
  return in.StepBytes(text.s().size() * 4) && in.Text(ConvertCase(text.s(), kCase), out);
}

// Every run that white space, dashes or opening brackets end begins with a capital.
bool TitleFilter(Interpreter& in, const Value& v, Args& args, Value* out) {
  Value text;
  if (!in.Bind("title", args, {}, 0, nullptr) || !ToText(in, v, &text)) return false;
  const std::string_view s = text.s();
  if (!in.StepBytes(s.size() * 8)) return false;
  std::string result;
  for (size_t at = 0; at < s.size();) {
    size_t end = at;
    while (end < s.size()) {
      const Utf8Char c = DecodeUtf8(s, end);
      if (IsSpace(c.code) || (c.code > 0 && c.code < 0x80 && std::string_view("-({[<").find(s[end]) != s.npos)) break;
      end += c.size;
    }
    if (end > at) {
      const size_t first = DecodeUtf8(s, at).size;
      result += ConvertCase(s.substr(at, first), Case::kUpper);
      result += ConvertCase(s.substr(at + first, end - at - first), Case::kLower);
      at = end;
    } else {
      const size_t size = DecodeUtf8(s, at).size;
      result.append(s.substr(at, size));
      at += size;
    }
  }
  return in.Text(std::move(result), out);
}

bool TrimFilter(Interpreter& in, const Value& v, Args& args, Value* out) {
  const Value* bound[1];
  Value text;
  if (!in.Bind("trim", args, {"chars"}, 0, bound) || !ToText(in, v, &text)) return false;
  if (bound[0] == nullptr || bound[0]->is_none()) {
    return in.StepBytes(text.s().size()) && in.Text(std::string(Strip(text.s(), nullptr, true, true)), out);
  }
  std::string_view chars;
  if (!in.BindText("trim", bound[0], &chars) || !in.StepBytes(text.s().size() * chars.size())) return false;
  return in.Text(std::string(Strip(text.s(), &chars, true, true)), out);
}

bool StringFilter(Interpreter& in, const Value& v, Args& args, Value* out) {
  return in.Bind("string", args, {}, 0, nullptr) && ToText(in, v, out);
}

bool SafeFilter(Interpreter& in, const Value& v, Args& args, Value* out) {
  if (!in.Bind("safe", args, {}, 0, nullptr) || !ToText(in, v, out)) return false;
  out->set_special(true);
  return true;
}

template <bool kForce>
bool EscapeFilter(Interpreter& in, const Value& v, Args& args, Value* out) {
  Value text;
  if (!in.Bind("escape", args, {}, 0, nullptr) || !ToText(in, v, &text)) return false;
  if (!kForce && text.special()) {
    *out = text;
    return true;
  }
  if (!in.CanText(text.s().size()) || !in.StepBytes(text.s().size() * 5)) return false;
  if (!in.Text(EscapeHtml(text.s()), out)) return false;
  out->set_special(true);
  return true;
}

bool ReplaceFilter(Interpreter& in, const Value& v, Args& args, Value* out) {
  const Value* bound[3];
  Value text;
  Value from;
  Value to;
  int64_t count = -1;
  if (!in.Bind("replace", args, {"old", "new", "count"}, 2, bound)) return false;
  if (!ToText(in, v, &text) || !ToText(in, *bound[0], &from) || !ToText(in, *bound[1], &to)) return false;
  if (bound[2] != nullptr && !bound[2]->is_none() && !in.BindInt(bound[2], -1, &count)) return false;
  return ReplaceText(in, text.s(), from.s(), to.s(), count, out);
}

bool IndentFilter(Interpreter& in, const Value& v, Args& args, Value* out) {
  const Value* bound[3];
  std::string_view source;
  if (!in.Bind("indent", args, {"width", "first", "blank"}, 0, bound) || !in.BindText("indent", &v, &source)) {
    return false;
  }
  std::string margin = "    ";
  if (bound[0] != nullptr && bound[0]->is_string()) {
    margin = bound[0]->s();
  } else if (bound[0] != nullptr) {
    int64_t width = 0;
    if (!in.BindInt(bound[0], 4, &width)) return false;
    if (!in.CanText(width < 0 ? 0 : static_cast<size_t>(width))) return false;
    margin.assign(static_cast<size_t>(std::max<int64_t>(width, 0)), ' ');
  }
  const std::string text = absl::StrCat(std::string(source), "\n");
  const std::vector<std::string_view> lines = SplitLines(text, false);
  std::string result = BindBool(bound[1], false) ? margin : "";
  for (size_t i = 0; i < lines.size(); ++i) {
    if (!in.Step() || !in.CanText(result.size() + margin.size() + lines[i].size() + 1)) return false;
    if (!in.StepBytes(margin.size() + lines[i].size())) return false;
    if (i > 0) result += '\n';
    if (i > 0 && (BindBool(bound[2], false) || !lines[i].empty())) result += margin;
    result.append(lines[i]);
  }
  return in.Text(std::move(result), out);
}

bool CenterFilter(Interpreter& in, const Value& v, Args& args, Value* out) {
  const Value* bound[1];
  Value text;
  if (!in.Bind("center", args, {"width"}, 0, bound) || !ToText(in, v, &text)) return false;
  Args call;
  call.list.push_back(bound[0] != nullptr ? *bound[0] : Value::Int(80));
  return in.CallMethod(text, FindMethod(Type::kString, "center"), call, out);
}

bool TruncateFilter(Interpreter& in, const Value& v, Args& args, Value* out) {
  const Value* bound[4];
  std::string_view text;
  std::string_view end = "...";
  int64_t length = 0;
  int64_t leeway = 5;
  if (!in.Bind("truncate", args, {"length", "killwords", "end", "leeway"}, 0, bound)) return false;
  if (!in.BindText("truncate", &v, &text) || !in.BindInt(bound[0], 255, &length)) return false;
  if (bound[2] != nullptr && !in.BindText("truncate", bound[2], &end)) return false;
  if (bound[3] != nullptr && !bound[3]->is_none() && !in.BindInt(bound[3], 5, &leeway)) return false;
  const int64_t mark = static_cast<int64_t>(CountChars(end));
  if (length < mark || leeway < 0)
    return in.Fail("truncate: length must not be below the end mark's, nor leeway below 0");
  const int64_t size = static_cast<int64_t>(v.str().chars);
  if (size - length <= leeway) {
    *out = v;
    return true;
  }
  std::string_view kept = text.substr(0, CharOffset(text, static_cast<size_t>(length - mark)));
  const size_t space = kept.rfind(' ');
  if (!BindBool(bound[1], false) && space != std::string_view::npos) kept = kept.substr(0, space);
  return in.Text(absl::StrCat(std::string(kept), std::string(end)), out);
}

bool WordCountFilter(Interpreter& in, const Value& v, Args& args, Value* out) {
  Value text;
  if (!in.Bind("wordcount", args, {}, 0, nullptr) || !ToText(in, v, &text)) return false;
  if (!in.StepBytes(text.s().size() * 4)) return false;
  int64_t words = 0;
  bool inside = false;
  for (size_t at = 0; at < text.s().size();) {
    const Utf8Char c = DecodeUtf8(text.s(), at);
    const bool word = c.code >= 0 && (c.code == '_' || IsWordCharacter(c.code));
    words += word && !inside ? 1 : 0;
    inside = word;
    at += c.size;
  }
  *out = Value::Int(words);
  return true;
}

void AppendQuoted(std::string_view text, bool query, std::string* out) {
  static constexpr char kHex[] = "0123456789ABCDEF";
  for (const char c : text) {
    const bool plain = (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') ||
                       std::string_view("_.-~").find(c) != std::string_view::npos;
    if (plain || (c == '/' && !query)) {
      *out += c;
    } else if (c == ' ' && query) {
      *out += '+';
    } else {
      *out += '%';
      *out += kHex[static_cast<unsigned char>(c) >> 4];
      *out += kHex[static_cast<unsigned char>(c) & 15];
    }
  }
}

bool UrlEncodeFilter(Interpreter& in, const Value& v, Args& args, Value* out) {
  if (!in.Bind("urlencode", args, {}, 0, nullptr)) return false;
  std::string result;
  if (v.is_listlike() || v.Is(Type::kDict)) {
    Value pairs;
    if (!(v.Is(Type::kDict) ? DictView(in, v, Type::kItems, &pairs) : Iterate(in, v, &pairs))) return false;
    for (const Value& item : pairs.items()) {
      Value pair;
      Value key;
      Value value;
      if (!Iterate(in, item, &pair)) return false;
      if (pair.items().size() != 2) return in.Fail("urlencode needs pairs");
      if (!ToText(in, pair.items()[0], &key) || !ToText(in, pair.items()[1], &value)) return false;
      if (!in.CanText(result.size() + 3 * (key.s().size() + value.s().size()))) return false;
      if (!result.empty()) result += '&';
      AppendQuoted(key.s(), true, &result);
      result += '=';
      AppendQuoted(value.s(), true, &result);
    }
    return in.Text(std::move(result), out);
  }
  Value text;
  if (!ToText(in, v, &text) || !in.CanText(3 * text.s().size())) return false;
  AppendQuoted(text.s(), false, &result);
  return in.Text(std::move(result), out);
}

bool XmlAttrFilter(Interpreter& in, const Value& v, Args& args, Value* out) {
  const Value* bound[1];
  if (!in.Bind("xmlattr", args, {"autospace"}, 0, bound)) return false;
  if (!v.Is(Type::kDict)) return in.Fail("xmlattr needs a mapping");
  std::string result;
  for (const auto& [key, value] : v.dict().entries) {
    if (value.is_none() || value.is_undefined()) continue;
    Value name;
    Value text;
    if (!ToText(in, key, &name) || !ToText(in, value, &text)) return false;
    if (!in.CanText(result.size() + 6 * (name.s().size() + text.s().size()))) return false;
    if (!result.empty() || BindBool(bound[0], true)) result += ' ';
    result += absl::StrCat(name.special() ? name.s() : EscapeHtml(name.s()), "=\"",
                           text.special() ? text.s() : EscapeHtml(text.s()), "\"");
  }
  return in.Text(std::move(result), out);
}

bool FormatFilter(Interpreter& in, const Value& v, Args& args, Value* out) {
  Value text;
  if (!ToText(in, v, &text)) return false;
  if (args.keywords.empty()) return FormatPercent(in, text.s(), args, out);
  if (!args.list.empty()) return in.Fail("format takes positional or keyword arguments, not both");
  Ref<DictObj> dict(new DictObj);
  for (const auto& [name, value] : args.keywords) {
    Value key;
    if (!in.Text(name, &key)) return false;
    dict->Set(key, value);
  }
  Args mapping;
  mapping.list.resize(1);
  return in.Dict(std::move(dict), &mapping.list[0]) && FormatPercent(in, text.s(), mapping, out);
}

bool ToJsonFilter(Interpreter& in, const Value& v, Args& args, Value* out) {
  const Value* bound[4];
  if (!in.Bind("tojson", args, {"ensure_ascii", "indent", "separators", "sort_keys"}, 0, bound)) return false;
  JsonStyle style;
  style.ascii = BindBool(bound[0], false);
  style.sort_keys = BindBool(bound[3], false);
  if (bound[1] != nullptr && !bound[1]->is_none()) {
    style.pretty = true;
    style.item_separator = ",";
    int64_t width = 0;
    if (bound[1]->is_string()) {
      style.indent = bound[1]->s();
    } else if (!in.BindInt(bound[1], 0, &width)) {
      return false;
    }
    if (width > 10000) return in.LimitHit("the indentation of JSON");
    if (width > 0) style.indent.assign(static_cast<size_t>(width), ' ');
  }
  if (bound[2] != nullptr && !bound[2]->is_none()) {
    Value pair;
    std::string_view item;
    std::string_view key;
    if (!Iterate(in, *bound[2], &pair)) return false;
    if (pair.items().size() != 2) return in.Fail("tojson: separators must be two texts");
    if (!in.BindText("tojson", &pair.items()[0], &item) || !in.BindText("tojson", &pair.items()[1], &key)) return false;
    if (item.size() + key.size() > 1000) return in.LimitHit("the separators of JSON");
    style.item_separator = std::string(item);
    style.key_separator = std::string(key);
  }
  std::string text;
  return AppendJson(in, v, style, &text) && in.Text(std::move(text), out);
}

constexpr FilterRow kTextFilters[] = {
    {"upper", CaseFilter<Case::kUpper>},
    {"lower", CaseFilter<Case::kLower>},
    {"capitalize", CaseFilter<Case::kCapitalize>},
    {"title", TitleFilter},
    {"trim", TrimFilter},
    {"string", StringFilter},
    {"safe", SafeFilter},
    {"escape", EscapeFilter<false>},
    {"e", EscapeFilter<false>},
    {"forceescape", EscapeFilter<true>},
    {"replace", ReplaceFilter},
    {"indent", IndentFilter},
    {"center", CenterFilter},
    {"truncate", TruncateFilter},
    {"wordcount", WordCountFilter},
    {"urlencode", UrlEncodeFilter},
    {"xmlattr", XmlAttrFilter},
    {"format", FormatFilter},
    {"tojson", ToJsonFilter},
};

}  // namespace

absl::Span<const FilterRow> TextFilters() { return kTextFilters; }

bool BindBool(const Value* arg, bool fallback) { return arg == nullptr ? fallback : Truthy(*arg); }

}  // namespace sage::jinja
