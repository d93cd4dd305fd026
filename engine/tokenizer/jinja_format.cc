// Python's two text formatters: "%s" % values and "{}".format(values).
#include <cmath>

#include "absl/strings/str_cat.h"
#include "engine/tokenizer/jinja_interpreter.h"
#include "engine/tokenizer/jinja_text.h"
#include "engine/tokenizer/unicode.h"

namespace sage::jinja {
namespace {

constexpr int64_t kMaxWidth = 1 << 20;

// A format specification of either kind.
struct Spec {
  std::string fill = " ";
  char align = 0;  // < > ^ =
  char sign = 0;   // + or space
  bool alternate = false;
  bool zero = false;
  bool comma = false;
  int64_t width = 0;
  int64_t precision = -1;
  char type = 0;
};

bool ReadNumber(Runtime& rt, std::string_view text, size_t* at, int64_t* out) {
  int64_t n = 0;
  while (*at < text.size() && text[*at] >= '0' && text[*at] <= '9') {
    n = n * 10 + (text[(*at)++] - '0');
    if (n > kMaxWidth) return rt.LimitHit("the width of a formatted value");
  }
  *out = n;
  return true;
}

std::string Grouped(const std::string& digits) {
  size_t end = digits.find_first_not_of("0123456789");
  if (end == std::string::npos) end = digits.size();
  std::string out;
  for (size_t i = 0; i < end; ++i) {
    if (i > 0 && (end - i) % 3 == 0) out += ',';
    out += digits[i];
  }
  return out + digits.substr(end);
}

std::string InBase(uint64_t n, unsigned base, bool upper) {
  std::string out;
  do {
    const char digit = "0123456789abcdef"[n % base];
    out.insert(out.begin(), upper && digit >= 'a' ? static_cast<char>(digit - 32) : digit);
    n /= base;
  } while (n > 0);
  return out;
}

// Sign, digits and padding of a number.
std::string Assemble(bool negative, std::string digits, const Spec& spec) {
  std::string sign = negative ? "-" : spec.sign != 0 ? std::string(1, spec.sign) : "";
  if (spec.comma) digits = Grouped(digits);
  const int64_t pad = spec.width - static_cast<int64_t>(sign.size() + digits.size());
  if (pad <= 0) return sign + digits;
  std::string fill;
  const std::string one = spec.zero && spec.align == 0 ? "0" : spec.fill;
  const int64_t left = spec.align == '<' ? 0 : spec.align == '^' ? pad / 2 : pad;
  std::string before;
  std::string after;
  for (int64_t i = 0; i < pad; ++i) (i < left ? before : after) += one;
  const bool inside = spec.align == '=' || (spec.zero && spec.align == 0);
  return inside ? sign + before + digits : before + sign + digits + after;
}

std::string PadText(const std::string& text, const Spec& spec, char default_align) {
  const int64_t pad = spec.width - static_cast<int64_t>(CountChars(text));
  if (pad <= 0) return text;
  const char align = spec.align != 0 ? spec.align : default_align;
  const int64_t left = align == '<' ? 0 : align == '^' ? pad / 2 : pad;
  std::string out;
  for (int64_t i = 0; i < left; ++i) out += spec.fill;
  out += text;
  for (int64_t i = left; i < pad; ++i) out += spec.fill;
  return out;
}

bool FormatInteger(Runtime& rt, const Value& v, const Spec& spec, std::string* out) {
  if (!v.is_integer()) {
    return rt.Fail(absl::StrCat("%", std::string(1, spec.type), " format: an integer is required, not ",
                                std::string(TypeName(v.type()))));
  }
  const bool negative = v.i() < 0;
  const uint64_t n = negative ? 0 - static_cast<uint64_t>(v.i()) : static_cast<uint64_t>(v.i());
  const unsigned base = spec.type == 'x' || spec.type == 'X' ? 16 : spec.type == 'o' ? 8 : spec.type == 'b' ? 2 : 10;
  std::string digits = InBase(n, base, spec.type == 'X');
  if (spec.precision > 500) return rt.LimitHit("the precision of a number");
  while (static_cast<int64_t>(digits.size()) < spec.precision) digits.insert(digits.begin(), '0');
  if (spec.alternate && base != 10) digits = absl::StrCat("0", std::string(1, spec.type), digits);
  *out += Assemble(negative, digits, spec);
  return true;
}

bool FormatReal(Runtime& rt, const Value& v, const Spec& spec, std::string* out) {
  if (!v.is_number()) return rt.Fail(absl::StrCat("must be real number, not ", std::string(TypeName(v.type()))));
  if (spec.precision > 500) return rt.LimitHit("the precision of a number");
  const double d = v.AsDouble();
  const bool negative = std::signbit(d) && !std::isnan(d);
  std::string digits = FormatFixed(std::fabs(d), spec.precision < 0 ? 6 : static_cast<int>(spec.precision), spec.type);
  *out += Assemble(negative, std::move(digits), spec);
  return true;
}

bool ReadPercentSpec(Runtime& rt, std::string_view format, size_t* at, Spec* spec) {
  for (; *at < format.size(); ++*at) {
    const char c = format[*at];
    if (c == '-') {
      spec->align = '<';
    } else if (c == '0') {
      spec->zero = true;
    } else if (c == '+' || (c == ' ' && spec->sign == 0)) {
      spec->sign = c;
    } else if (c == '#') {
      spec->alternate = true;
    } else if (c != ' ') {
      break;
    }
  }
  if (!ReadNumber(rt, format, at, &spec->width)) return false;
  if (*at < format.size() && format[*at] == '.') {
    ++*at;
    if (!ReadNumber(rt, format, at, &spec->precision)) return false;
  }
  while (*at < format.size() && (format[*at] == 'l' || format[*at] == 'h' || format[*at] == 'L')) ++*at;
  if (*at >= format.size()) return rt.Fail("incomplete format");
  spec->type = format[(*at)++];
  return true;
}

bool OnePercent(Runtime& rt, Spec spec, const Value& v, std::string* out) {
  switch (spec.type) {
    case 's':
    case 'r':
    case 'a': {
      std::string text;
      if (!(spec.type == 's' ? AppendStr(rt, v, &text) : AppendRepr(rt, v, &text))) return false;
      if (spec.precision >= 0) text.resize(CharOffset(text, static_cast<size_t>(spec.precision)));
      *out += PadText(text, spec, '>');
      return true;
    }
    case 'd':
    case 'i':
    case 'u':
      spec.type = 'd';
      if (v.Is(Type::kFloat) && std::abs(v.d()) < 9e18) {
        return FormatInteger(rt, Value::Int(static_cast<int64_t>(v.d())), spec, out);
      }
      return FormatInteger(rt, v, spec, out);
    case 'x':
    case 'X':
    case 'o':
      return FormatInteger(rt, v, spec, out);
    case 'f':
    case 'F':
    case 'e':
    case 'E':
    case 'g':
    case 'G':
      return FormatReal(rt, v, spec, out);
    case 'c': {
      if (!v.is_string() || v.str().chars != 1) return rt.Fail("%c requires a character");
      *out += PadText(v.s(), spec, '>');
      return true;
    }
    default:
      return rt.Fail(absl::StrCat("unsupported format character '", std::string(1, spec.type), "'"));
  }
}

bool ReadBraceSpec(Runtime& rt, std::string_view text, Spec* spec) {
  size_t at = 0;
  const auto is_align = [&](size_t i) {
    return i < text.size() && std::string_view("<>^=").find(text[i]) != std::string_view::npos;
  };
  if (!text.empty()) {
    const size_t first = DecodeUtf8(text, 0).size;
    if (is_align(first)) {
      spec->fill = std::string(text.substr(0, first));
      spec->align = text[first];
      at = first + 1;
    } else if (is_align(0)) {
      spec->align = text[0];
      at = 1;
    }
  }
  const auto skip = [&](char c) { return at < text.size() && text[at] == c && (++at, true); };
  if (skip('+')) {
    spec->sign = '+';
  } else if (skip(' ')) {
    spec->sign = ' ';
  } else {
    skip('-');
  }
  spec->alternate = skip('#');
  spec->zero = skip('0');
  if (!ReadNumber(rt, text, &at, &spec->width)) return false;
  spec->comma = skip(',');
  if (skip('.') && !ReadNumber(rt, text, &at, &spec->precision)) return false;
  if (at < text.size()) spec->type = text[at++];
  return at == text.size() || rt.Fail("invalid format specifier");
}

bool OneBrace(Runtime& rt, std::string_view spec_text, const Value& v, std::string* out) {
  Spec spec;
  if (spec_text.empty()) return AppendStr(rt, v, out);
  if (v.is_undefined()) return rt.Fail("unsupported format string passed to Undefined.__format__");
  if (!ReadBraceSpec(rt, spec_text, &spec)) return false;
  static constexpr std::string_view kReals = "eEfFgG%";
  const bool real = spec.type != 0 && kReals.find(spec.type) != std::string_view::npos;
  if (v.is_number() && real) return FormatReal(rt, v, spec, out);
  if (v.is_integer() && !v.Is(Type::kBool) && spec.precision < 0 && spec.type != 's' &&
      std::string_view("\0bdoxXn", 7).find(spec.type) != std::string_view::npos) {
    return FormatInteger(rt, v, spec, out);
  }
  if (v.Is(Type::kFloat) && spec.type == 0) {
    if (spec.precision > 500) return rt.LimitHit("the precision of a number");
    std::string digits = spec.precision < 0 ? FloatRepr(std::fabs(v.d()))
                                            : FormatFixed(std::fabs(v.d()), static_cast<int>(spec.precision), 'g');
    *out += Assemble(std::signbit(v.d()) && !std::isnan(v.d()), std::move(digits), spec);
    return true;
  }
  const bool text_like = v.is_string() || v.is_none() || v.Is(Type::kBool);
  if (!text_like || (spec.type != 0 && spec.type != 's')) {
    return rt.Fail(absl::StrCat("unknown format code for object of type '", std::string(TypeName(v.type())), "'"));
  }
  std::string text;
  if (!AppendStr(rt, v, &text)) return false;
  if (spec.precision >= 0) text.resize(CharOffset(text, static_cast<size_t>(spec.precision)));
  *out += PadText(text, spec, '<');
  return true;
}

// The value a replacement field names: a position or keyword, then .attribute and [item] steps.
bool FieldValue(Interpreter& in, std::string_view field, const Args& args, int64_t* automatic, Value* out) {
  const size_t end = std::min(field.find('.'), field.find('['));
  const std::string_view name = field.substr(0, end);
  if (name.empty() || (name[0] >= '0' && name[0] <= '9')) {
    int64_t index = 0;
    size_t at = 0;
    if (name.empty()) {
      index = (*automatic)++;
    } else if (!ReadNumber(in, name, &at, &index)) {
      return false;
    }
    if (index >= static_cast<int64_t>(args.list.size())) {
      return in.Fail("Replacement index out of range for positional args tuple");
    }
    *out = args.list[index];
  } else {
    bool found = false;
    for (const auto& [keyword, value] : args.keywords) {
      if (keyword == name) {
        *out = value;
        found = true;
      }
    }
    if (!found) return in.Fail(absl::StrCat("format names no argument '", std::string(name.substr(0, 60)), "'"));
  }
  std::string_view rest = end == std::string_view::npos ? std::string_view() : field.substr(end);
  while (!rest.empty()) {
    const bool item = rest[0] == '[';
    rest.remove_prefix(1);
    const size_t stop = item ? rest.find(']') : std::min(rest.find('.'), rest.find('['));
    if (item && stop == std::string_view::npos) return in.Fail("expected ']' in a format field");
    const std::string_view key = rest.substr(0, stop);
    rest = stop == std::string_view::npos ? std::string_view() : rest.substr(stop + (item ? 1 : 0));
    if (!rest.empty() && rest[0] != '.' && rest[0] != '[') return in.Fail("only '.' or '[' may follow ']'");
    Value text;
    size_t at = 0;
    int64_t index = 0;
    if (!in.Text(std::string(key), &text)) return false;
    const bool number = item && !key.empty() && key.find_first_not_of("0123456789") == std::string_view::npos;
    if (number && !ReadNumber(in, key, &at, &index)) return false;
    const Value object = *out;
    if (!(item ? in.Item(object, number ? Value::Int(index) : text, out) : in.Attribute(object, text, out))) {
      return false;
    }
    if (out->is_undefined()) return FailUndefined(in, *out);
  }
  return true;
}

}  // namespace

bool FormatPercent(Interpreter& in, std::string_view format, const Args& args, Value* out) {
  std::string text;
  size_t used = 0;
  const Value* mapping = args.list.size() == 1 && args.list[0].Is(Type::kDict) ? &args.list[0] : nullptr;
  for (size_t at = 0; at < format.size();) {
    const size_t next = std::min(format.find('%', at), format.size());
    text.append(format.substr(at, next - at));
    if (next == format.size()) break;
    at = next + 1;
    if (!in.Step() || !in.CanText(text.size())) return false;
    const Value* value = nullptr;
    if (at < format.size() && format[at] == '(') {
      const size_t close = format.find(')', at);
      if (mapping == nullptr || close == std::string_view::npos) return in.Fail("format requires a mapping");
      value = mapping->dict().FindText(format.substr(at + 1, close - at - 1));
      if (value == nullptr) return in.Fail("format names a key that the mapping lacks");
      at = close + 1;
    }
    Spec spec;
    if (!ReadPercentSpec(in, format, &at, &spec)) return false;
    if (spec.type == '%') {
      text += '%';
      continue;
    }
    if (value == nullptr) {
      if (used >= args.list.size()) return in.Fail("not enough arguments for format string");
      value = &args.list[used++];
    }
    if (!OnePercent(in, spec, *value, &text)) return false;
  }
  if (mapping == nullptr && used < args.list.size()) {
    return in.Fail("not all arguments converted during string formatting");
  }
  return in.Text(std::move(text), out);
}

bool FormatBraces(Interpreter& in, std::string_view format, const Args& args, Value* out) {
  std::string text;
  int64_t automatic = 0;
  for (size_t at = 0; at < format.size();) {
    if (!in.Step() || !in.CanText(text.size())) return false;
    const char c = format[at];
    if ((c == '{' || c == '}') && at + 1 < format.size() && format[at + 1] == c) {
      text += c;
      at += 2;
      continue;
    }
    if (c == '}') return in.Fail("Single '}' encountered in format string");
    if (c != '{') {
      const size_t next = std::min(format.find_first_of("{}", at), format.size());
      text.append(format.substr(at, next - at));
      at = next;
      continue;
    }
    const size_t close = format.find('}', at);
    if (close == std::string_view::npos) return in.Fail("expected '}' before end of string");
    std::string_view field = format.substr(at + 1, close - at - 1);
    if (field.find('{') != std::string_view::npos) return in.Fail("nested format fields are not supported");
    at = close + 1;
    std::string_view spec;
    if (const size_t colon = field.find(':'); colon != std::string_view::npos) {
      spec = field.substr(colon + 1);
      field = field.substr(0, colon);
    }
    bool repr = false;
    if (const size_t mark = field.find('!'); mark != std::string_view::npos) {
      const std::string_view conversion = field.substr(mark + 1);
      if (conversion != "r" && conversion != "s") return in.Fail("unknown conversion in a format field");
      repr = conversion == "r";
      field = field.substr(0, mark);
    }
    Value value;
    if (!FieldValue(in, field, args, &automatic, &value)) return false;
    if (repr) {
      std::string shown;
      if (!AppendRepr(in, value, &shown) || !in.Text(std::move(shown), &value)) return false;
    }
    if (!OneBrace(in, spec, value, &text)) return false;
  }
  return in.Text(std::move(text), out);
}

}  // namespace sage::jinja
