// Filters that make numbers, and `default`.
#include <charconv>
#include <cmath>
#include <cstdlib>

#include "absl/strings/str_cat.h"
#include "engine/tokenizer/jinja_filters.h"
#include "engine/tokenizer/jinja_text.h"

namespace sage::jinja {
namespace {

// Digits with Python's underscores removed; false when one is misplaced.
bool WithoutUnderscores(std::string_view text, std::string* out) {
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '_') {
      *out += text[i];
    } else if (i == 0 || i + 1 == text.size() || text[i - 1] == '_') {
      return false;
    }
  }
  return true;
}

enum class Parsed { kOk, kMalformed, kTooLarge };

// int(text, base)
Parsed ParseInt(std::string_view text, int base, int64_t* out) {
  text = Strip(text, nullptr, true, true);
  bool negative = false;
  if (!text.empty() && (text[0] == '-' || text[0] == '+')) {
    negative = text[0] == '-';
    text.remove_prefix(1);
  }
  if (text.size() > 1 && text[0] == '0') {
    const char mark = static_cast<char>(text[1] | 0x20);
    const int named = mark == 'x' ? 16 : mark == 'o' ? 8 : mark == 'b' ? 2 : 0;
    if (named != 0 && (base == named || base == 0)) {
      base = named;
      text.remove_prefix(2);
      if (!text.empty() && text[0] == '_') text.remove_prefix(1);
    }
  }
  if (base == 0) base = 10;
  std::string digits;
  if (text.empty() || text[0] == '-' || text[0] == '+' || !WithoutUnderscores(text, &digits)) return Parsed::kMalformed;
  if (negative) digits.insert(0, "-");
  const auto [ptr, ec] = std::from_chars(digits.data(), digits.data() + digits.size(), *out, base);
  if (ec == std::errc::invalid_argument || ptr != digits.data() + digits.size()) return Parsed::kMalformed;
  return ec == std::errc() ? Parsed::kOk : Parsed::kTooLarge;
}

// float(text)
bool ParseFloat(std::string_view text, double* out) {
  text = Strip(text, nullptr, true, true);
  std::string digits;
  if (text.size() > 4096 || !WithoutUnderscores(text, &digits)) return false;
  const std::string folded = ConvertCase(digits, Case::kLower);
  const std::string bare = folded.substr(folded.empty() || (folded[0] != '-' && folded[0] != '+') ? 0 : 1);
  const bool word = bare == "inf" || bare == "infinity" || bare == "nan";
  if (!word && (bare.empty() || bare.find_first_not_of("0123456789.e+-") != std::string::npos)) return false;
  char* end = nullptr;
  *out = std::strtod(folded.c_str(), &end);
  return end == folded.c_str() + folded.size();
}

bool FloatToInt(Interpreter& in, double d, Value* out) {
  if (!(std::abs(d) < 9.2e18)) return in.Fail("cannot convert the float to a 64-bit integer");
  *out = Value::Int(static_cast<int64_t>(d));
  return true;
}

bool IntFilter(Interpreter& in, const Value& v, Args& args, Value* out) {
  const Value* bound[2];
  int64_t base = 10;
  if (!in.Bind("int", args, {"default", "base"}, 0, bound) || !in.BindInt(bound[1], 10, &base)) return false;
  *out = bound[0] != nullptr ? *bound[0] : Value::Int(0);
  if (v.is_integer()) *out = Value::Int(v.i());
  if (v.Is(Type::kBigUint)) *out = v;
  if (v.Is(Type::kFloat)) return std::isnan(v.d()) ? true : FloatToInt(in, v.d(), out);
  if (v.is_undefined()) return FailUndefined(in, v);
  if (!v.is_string()) return true;
  if (base != 0 && (base < 2 || base > 36)) return true;
  int64_t n = 0;
  double d = 0;
  if (!in.StepBytes(v.s().size())) return false;
  switch (ParseInt(v.s(), static_cast<int>(base), &n)) {
    case Parsed::kOk:
      *out = Value::Int(n);
      return true;
    case Parsed::kTooLarge:
      return in.Fail("integer overflow: a number must fit in 64 bits");
    default:
      return !ParseFloat(v.s(), &d) || std::isnan(d) || FloatToInt(in, d, out);
  }
}

bool FloatFilter(Interpreter& in, const Value& v, Args& args, Value* out) {
  const Value* bound[1];
  double d = 0;
  if (!in.Bind("float", args, {"default"}, 0, bound)) return false;
  if (v.is_undefined()) return FailUndefined(in, v);
  if (v.is_number()) {
    *out = Value::Float(v.AsDouble());
  } else if (v.is_string() && in.StepBytes(v.s().size()) && ParseFloat(v.s(), &d)) {
    *out = Value::Float(d);
  } else {
    *out = bound[0] != nullptr ? *bound[0] : Value::Float(0);
  }
  return !in.failed();
}

bool AbsFilter(Interpreter& in, const Value& v, Args& args, Value* out) {
  if (!in.Bind("abs", args, {}, 0, nullptr)) return false;
  if (v.is_undefined()) return FailUndefined(in, v);
  if (v.Is(Type::kFloat)) {
    *out = Value::Float(std::fabs(v.d()));
    return true;
  }
  if (!v.is_integer())
    return in.Fail(absl::StrCat("bad operand type for abs(): '", std::string(TypeName(v.type())), "'"));
  if (v.i() == INT64_MIN) return in.Fail("integer overflow: a result must fit in 64 bits");
  *out = Value::Int(std::abs(v.i()));
  return true;
}

bool RoundFilter(Interpreter& in, const Value& v, Args& args, Value* out) {
  const Value* bound[2];
  int64_t precision = 0;
  std::string_view method = "common";
  if (!in.Bind("round", args, {"precision", "method"}, 0, bound) || !in.BindInt(bound[0], 0, &precision)) return false;
  if (bound[1] != nullptr && !in.BindText("round", bound[1], &method)) return false;
  if (v.is_undefined()) return FailUndefined(in, v);
  if (!v.is_number()) return in.Fail("round needs a number");
  if (precision < -300 || precision > 300) return in.LimitHit("the precision of a number");
  const double d = v.AsDouble();
  if (method == "ceil" || method == "floor") {
    const double scale = std::pow(10.0, static_cast<double>(precision));
    const double scaled = method == "ceil" ? std::ceil(d * scale) : std::floor(d * scale);
    if (!std::isfinite(scaled)) return in.Fail("cannot round an infinite number");
    *out = Value::Float(scaled / scale);
    return true;
  }
  if (method != "common") return in.Fail("method must be common, ceil or floor");
  if (v.is_integer() && precision >= 0) {
    *out = Value::Int(v.i());
    return true;
  }
  if (!std::isfinite(d)) {
    *out = v;
    return true;
  }
  double result = 0;
  if (precision >= 0) {
    result = std::strtod(FormatFixed(d, static_cast<int>(precision), 'f').c_str(), nullptr);
  } else {
    const double scale = std::pow(10.0, static_cast<double>(-precision));
    result = std::nearbyint(d / scale) * scale;
  }
  if (v.is_integer()) return FloatToInt(in, result, out);
  *out = Value::Float(result);
  return true;
}

bool DefaultFilter(Interpreter& in, const Value& v, Args& args, Value* out) {
  const Value* bound[2];
  if (!in.Bind("default", args, {"default_value", "boolean"}, 0, bound)) return false;
  if (!v.is_undefined() && !(BindBool(bound[1], false) && !Truthy(v))) {
    *out = v;
    return true;
  }
  if (bound[0] == nullptr) return in.Text("", out);
  *out = *bound[0];
  return true;
}

bool FileSizeFilter(Interpreter& in, const Value& v, Args& args, Value* out) {
  const Value* bound[1];
  double bytes = 0;
  if (!in.Bind("filesizeformat", args, {"binary"}, 0, bound)) return false;
  if (v.is_number()) {
    bytes = v.AsDouble();
  } else if (!v.is_string() || !ParseFloat(v.s(), &bytes)) {
    return in.Fail("filesizeformat needs a number");
  }
  const bool binary = BindBool(bound[0], false);
  const double base = binary ? 1024 : 1000;
  if (bytes == 1) return in.Text("1 Byte", out);
  if (!std::isfinite(bytes)) return in.Fail("filesizeformat needs a finite number");
  if (bytes < base) return in.Text(absl::StrCat(FormatFixed(std::trunc(bytes), 0, 'f'), " Bytes"), out);
  static constexpr std::string_view kPrefixes = "kMGTPEZY";
  double unit = base;
  size_t i = 0;
  for (; i < kPrefixes.size(); ++i) {
    unit *= base;
    if (bytes < unit || i + 1 == kPrefixes.size()) break;
  }
  const char prefix = binary && kPrefixes[i] == 'k' ? 'K' : kPrefixes[i];
  return in.Text(
      absl::StrCat(FormatFixed(base * bytes / unit, 1, 'f'), " ", std::string(1, prefix), binary ? "iB" : "B"), out);
}

constexpr FilterRow kNumberFilters[] = {
    {"int", IntFilter},
    {"float", FloatFilter},
    {"abs", AbsFilter},
    {"round", RoundFilter},
    {"default", DefaultFilter},
    {"d", DefaultFilter},
    {"filesizeformat", FileSizeFilter},
};

}  // namespace

absl::Span<const FilterRow> NumberFilters() { return kNumberFilters; }

}  // namespace sage::jinja
