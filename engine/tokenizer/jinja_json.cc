// JSON into template values and out again (json.dumps as transformers calls it).
#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "engine/tokenizer/jinja_interpreter.h"
#include "engine/tokenizer/jinja_text.h"
#include "engine/tokenizer/unicode.h"

namespace sage::jinja {
namespace {

void AppendEscape(std::string* out, uint32_t unit) {
  char buffer[16];
  std::snprintf(buffer, sizeof(buffer), "\\u%04x", unit);
  *out += buffer;
}

void AppendJsonText(std::string_view text, bool ascii, std::string* out) {
  *out += '"';
  for (size_t at = 0; at < text.size();) {
    const Utf8Char c = DecodeUtf8(text, at);
    static constexpr std::string_view kFrom = "\"\\\n\r\t\b\f";
    static constexpr std::string_view kTo = "\"\\nrtbf";
    const size_t plain = c.code >= 0 && c.code < 0x80 ? kFrom.find(static_cast<char>(c.code)) : std::string_view::npos;
    if (plain != std::string_view::npos) {
      *out += '\\';
      *out += kTo[plain];
    } else if (c.code >= 0 && (c.code < 0x20 || (ascii && c.code >= 0x7F))) {
      if (c.code >= 0x10000) {
        AppendEscape(out, 0xD800 + ((c.code - 0x10000) >> 10));
        AppendEscape(out, 0xDC00 + ((c.code - 0x10000) & 0x3FF));
      } else {
        AppendEscape(out, c.code);
      }
    } else {
      out->append(text.substr(at, c.size));
    }
    at += c.size;
  }
  *out += '"';
}

std::string JsonFloat(double d) {
  if (std::isnan(d)) return "NaN";
  if (std::isinf(d)) return d < 0 ? "-Infinity" : "Infinity";
  return FloatRepr(d);
}

// The text of an object's key; false for types that JSON keys cannot be made of.
bool KeyText(Runtime& rt, const Value& key, std::string* out) {
  switch (key.type()) {
    case Type::kString:
      *out = key.s();
      return true;
    case Type::kBool:
      *out = key.b() ? "true" : "false";
      return true;
    case Type::kNone:
      *out = "null";
      return true;
    case Type::kFloat:
      *out = JsonFloat(key.d());
      return true;
    case Type::kInt:
      *out = std::to_string(key.i());
      return true;
    case Type::kBigUint:
      *out = std::to_string(key.u());
      return true;
    default:
      return rt.Fail(
          absl::StrCat("keys must be str, int, float, bool or None, not ", std::string(TypeName(key.type()))));
  }
}

bool AppendBreak(Runtime& rt, const JsonStyle& style, int depth, std::string* out) {
  if (!style.pretty) return true;
  if (!rt.CanText(out->size() + style.indent.size() * static_cast<size_t>(depth) + 1)) return false;
  *out += '\n';
  for (int i = 0; i < depth; ++i) *out += style.indent;
  return rt.StepBytes(style.indent.size() * static_cast<size_t>(depth));
}

// json.dumps writes the separator without its trailing space at the end of a line only when told so; an indent's
// default separator is "," already.
bool AppendList(Runtime& rt, const std::vector<Value>& items, const JsonStyle& style, std::string* out, int depth) {
  if (items.empty()) {
    *out += "[]";
    return true;
  }
  *out += '[';
  for (size_t i = 0; i < items.size(); ++i) {
    if (i > 0) *out += style.item_separator;
    if (!AppendBreak(rt, style, depth + 1, out) || !AppendJson(rt, items[i], style, out, depth + 1)) return false;
  }
  if (!AppendBreak(rt, style, depth, out)) return false;
  *out += ']';
  return true;
}

bool AppendObject(Runtime& rt, const DictObj& dict, const JsonStyle& style, std::string* out, int depth) {
  if (dict.entries.empty()) {
    *out += "{}";
    return true;
  }
  std::vector<const std::pair<Value, Value>*> order;
  for (const auto& entry : dict.entries) order.push_back(&entry);
  if (style.sort_keys) {
    std::stable_sort(order.begin(), order.end(), [&rt](const auto* a, const auto* b) {
      bool less = false;
      return rt.Step() && Less(rt, a->first, b->first, &less) && less;
    });
    if (rt.failed()) return false;
  }
  *out += '{';
  bool first = true;
  for (const auto* entry : order) {
    if (!first) *out += style.item_separator;
    first = false;
    std::string key;
    if (!AppendBreak(rt, style, depth + 1, out) || !KeyText(rt, entry->first, &key)) return false;
    AppendJsonText(key, style.ascii, out);
    *out += style.key_separator;
    if (!AppendJson(rt, entry->second, style, out, depth + 1)) return false;
  }
  if (!AppendBreak(rt, style, depth, out)) return false;
  *out += '}';
  return true;
}

}  // namespace

bool FromJson(Runtime& rt, const OrderedJson& json, Value* out, int depth) {
  if (depth > kMaxValueDepth) return rt.LimitHit("nesting of the context");
  switch (json.type()) {
    case OrderedJson::value_t::boolean:
      *out = Value::Bool(json.get<bool>());
      return true;
    case OrderedJson::value_t::number_integer:
      *out = Value::Int(json.get<int64_t>());
      return true;
    case OrderedJson::value_t::number_unsigned: {
      const uint64_t u = json.get<uint64_t>();
      *out = u > static_cast<uint64_t>(INT64_MAX) ? Value::BigUint(u) : Value::Int(static_cast<int64_t>(u));
      return true;
    }
    case OrderedJson::value_t::number_float:
      *out = Value::Float(json.get<double>());
      return true;
    case OrderedJson::value_t::string:
      return rt.Text(json.get_ref<const std::string&>(), out);
    case OrderedJson::value_t::array: {
      if (!rt.CanItems(json.size())) return false;
      std::vector<Value> items(json.size());
      for (size_t i = 0; i < items.size(); ++i) {
        if (!FromJson(rt, json[i], &items[i], depth + 1)) return false;
      }
      return rt.List(std::move(items), out);
    }
    case OrderedJson::value_t::object: {
      Ref<DictObj> dict(new DictObj);
      for (const auto& [name, member] : json.items()) {
        Value key;
        Value value;
        if (!rt.Text(name, &key) || !FromJson(rt, member, &value, depth + 1)) return false;
        dict->Set(key, std::move(value));
      }
      return rt.Dict(std::move(dict), out);
    }
    default:
      *out = Value::None();
      return true;
  }
}

bool AppendJson(Runtime& rt, const Value& v, const JsonStyle& style, std::string* out, int depth) {
  if (!rt.Step() || !rt.CanText(out->size())) return false;
  if (depth > kMaxValueDepth) return rt.LimitHit("nesting of values");
  switch (v.type()) {
    case Type::kNone:
      *out += "null";
      return true;
    case Type::kBool:
      *out += v.b() ? "true" : "false";
      return true;
    case Type::kInt:
      absl::StrAppend(out, v.i());
      return true;
    case Type::kBigUint:
      absl::StrAppend(out, v.u());
      return true;
    case Type::kFloat:
      *out += JsonFloat(v.d());
      return true;
    case Type::kString:
      if (!rt.StepBytes(v.s().size() * 2)) return false;
      AppendJsonText(v.s(), style.ascii, out);
      return true;
    case Type::kList:
    case Type::kTuple:
      return AppendList(rt, v.items(), style, out, depth);
    case Type::kDict:
      return AppendObject(rt, v.dict(), style, out, depth);
    default:
      return rt.Fail(absl::StrCat("Object of type ", std::string(TypeName(v.type())), " is not JSON serializable"));
  }
}

}  // namespace sage::jinja
