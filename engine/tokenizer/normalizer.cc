// Hugging Face's normalizers.
#include "engine/tokenizer/normalizer.h"

#include <functional>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "engine/tokenizer/pattern.h"
#include "engine/tokenizer/unicode.h"

namespace sage {
namespace {

// A normalizer that is one function of the text.
class FunctionNormalizer : public Normalizer {
 public:
  using Function = std::function<void(std::string&, bool*)>;
  explicit FunctionNormalizer(Function function) : function_(std::move(function)) {}
  absl::Status Apply(std::string& text, bool* removed_front) const override {
    function_(text, removed_front);
    return absl::OkStatus();
  }

 private:
  Function function_;
};

std::unique_ptr<Normalizer> Make(FunctionNormalizer::Function function) {
  return std::make_unique<FunctionNormalizer>(std::move(function));
}

class ReplaceNormalizer : public Normalizer {
 public:
  ReplaceNormalizer(std::shared_ptr<const Regex> pattern, std::string content)
      : pattern_(std::move(pattern)), content_(std::move(content)) {}
  absl::Status Apply(std::string& text, bool* removed_front) const override {
    std::vector<TextRange> matches;
    if (!text.empty()) SAGE_RETURN_IF_ERROR(pattern_->FindAll(text, matches));
    if (matches.empty()) return absl::OkStatus();
    if (content_.empty() && matches[0].begin == 0 && matches[0].end > 0) *removed_front = true;
    return ReplaceMatches(text, matches, content_);
  }

 private:
  std::shared_ptr<const Regex> pattern_;
  std::string content_;
};

// Rebuilds the text character by character; `map` appends what a character becomes.
template <typename F>
void MapCharacters(std::string& text, bool* removed_front, F&& map) {
  std::string out;
  out.reserve(text.size());
  for (size_t at = 0; at < text.size();) {
    const Utf8Char c = DecodeUtf8(text, at);
    map(c.code, std::string_view(text).substr(at, c.size), out);
    at += c.size;
    if (out.empty()) *removed_front = true;
  }
  text = std::move(out);
}

void StripText(std::string& text, bool left, bool right, bool* removed_front) {
  size_t begin = 0, end = text.size();
  while (left && begin < end) {
    const Utf8Char c = DecodeUtf8(text, begin);
    if (!IsWhitespace(c.code)) break;
    begin += c.size;
  }
  while (right && end > begin) {
    size_t last = end - 1;
    while (last > begin && (static_cast<uint8_t>(text[last]) & 0xC0) == 0x80) --last;
    if (!IsWhitespace(DecodeUtf8(text, last).code)) break;
    end = last;
  }
  if (begin > 0) *removed_front = true;
  text = text.substr(begin, end - begin);
}

struct BertRules {
  bool clean = true, chinese = true, lowercase = true, strip_accents = true;
};

void BertNormalize(const BertRules& rules, std::string& text, bool* removed_front) {
  if (rules.clean) {
    MapCharacters(text, removed_front, [](int32_t code, std::string_view bytes, std::string& out) {
      const bool blank = code == '\t' || code == '\n' || code == '\r';
      if (code == 0 || code == 0xFFFD || (!blank && IsOther(code))) return;
      if (blank || IsWhitespace(code)) {
        out += ' ';
      } else {
        out += bytes;
      }
    });
  }
  if (rules.chinese) {
    MapCharacters(text, removed_front, [](int32_t code, std::string_view bytes, std::string& out) {
      const bool wide = IsChineseCharacter(code);
      if (wide) out += ' ';
      out += bytes;
      if (wide) out += ' ';
    });
  }
  if (rules.strip_accents) {
    text = NormalizeUnicode(text, UnicodeForm::kNfd);
    MapCharacters(text, removed_front, [](int32_t code, std::string_view bytes, std::string& out) {
      if (!IsNonspacingMark(code)) out += bytes;
    });
  }
  if (rules.lowercase) text = LowercaseUnicode(text);
}

void NmtNormalize(std::string& text, bool* removed_front) {
  MapCharacters(text, removed_front, [](int32_t c, std::string_view bytes, std::string& out) {
    const bool removed = (c >= 1 && c <= 8) || c == 11 || (c >= 14 && c <= 31) || c == 127 || c == 0x8F || c == 0x9F;
    if (removed) return;
    const bool space = c == 9 || c == 10 || c == 12 || c == 13 || c == 0x1680 || (c >= 0x200B && c <= 0x200F) ||
                       c == 0x2028 || c == 0x2029 || c == 0x2581 || c == 0xFEFF || c == 0xFFFD;
    if (space) {
      out += ' ';
    } else {
      out += bytes;
    }
  });
}

// Hugging Face looks up whole grapheme clusters first, and takes the shortest key in the trie.
void PrecompiledNormalize(const PrecompiledMap& map, std::string& text, bool* removed_front) {
  std::string out;
  out.reserve(text.size());
  const std::string_view in = text;
  std::string_view replacement;
  for (size_t at = 0; at < in.size();) {
    const size_t length = GraphemeLength(in, at);
    const std::string_view cluster = in.substr(at, length);
    at += length;
    if (cluster.size() < 6 && map.Find(cluster, false, &replacement) > 0) {
      out += replacement;
      continue;
    }
    for (size_t i = 0; i < cluster.size();) {
      const std::string_view character = cluster.substr(i, DecodeUtf8(cluster, i).size);
      out += map.Find(character, false, &replacement) > 0 ? replacement : character;
      i += character.size();
    }
  }
  if (out.empty() && !text.empty()) *removed_front = true;
  text = std::move(out);
}

absl::StatusOr<std::unique_ptr<Normalizer>> ParseBert(const Json& json) {
  BertRules rules;
  SAGE_ASSIGN_OR_RETURN(rules.clean, JsonBool(json, "clean_text", true));
  SAGE_ASSIGN_OR_RETURN(rules.chinese, JsonBool(json, "handle_chinese_chars", true));
  SAGE_ASSIGN_OR_RETURN(rules.lowercase, JsonBool(json, "lowercase", true));
  SAGE_ASSIGN_OR_RETURN(rules.strip_accents, JsonBool(json, "strip_accents", rules.lowercase));
  return Make([rules](std::string& text, bool* front) { BertNormalize(rules, text, front); });
}

absl::StatusOr<std::unique_ptr<Normalizer>> ParsePrecompiled(const Json& json) {
  SAGE_ASSIGN_OR_RETURN(const std::string encoded, JsonString(json, "precompiled_charsmap", ""));
  std::string blob;
  if (!absl::Base64Unescape(encoded, &blob)) {
    return MakeError(absl::StatusCode::kInvalidArgument, "TOKENIZER_INVALID",
                     "tokenizer.json normalizer: precompiled_charsmap must be base64");
  }
  SAGE_ASSIGN_OR_RETURN(PrecompiledMap map, PrecompiledMap::Parse(blob));
  auto shared = std::make_shared<const PrecompiledMap>(std::move(map));
  return Make([shared](std::string& text, bool* front) { PrecompiledNormalize(*shared, text, front); });
}

absl::StatusOr<std::unique_ptr<Normalizer>> ParseStrip(const Json& json) {
  SAGE_ASSIGN_OR_RETURN(const bool left, JsonBool(json, "strip_left", true));
  SAGE_ASSIGN_OR_RETURN(const bool right, JsonBool(json, "strip_right", true));
  return Make([left, right](std::string& text, bool* front) { StripText(text, left, right, front); });
}

std::unique_ptr<Normalizer> MakeForm(UnicodeForm form) {
  return Make([form](std::string& text, bool*) { text = NormalizeUnicode(text, form); });
}

absl::StatusOr<std::unique_ptr<Normalizer>> ParseOne(const Json& json) {
  SAGE_ASSIGN_OR_RETURN(const std::string type, JsonString(json, "type", ""));
  if (type == "NFC") return MakeForm(UnicodeForm::kNfc);
  if (type == "NFD") return MakeForm(UnicodeForm::kNfd);
  if (type == "NFKC") return MakeForm(UnicodeForm::kNfkc);
  if (type == "NFKD") return MakeForm(UnicodeForm::kNfkd);
  if (type == "Lowercase") return Make([](std::string& text, bool*) { text = LowercaseUnicode(text); });
  if (type == "Strip") return ParseStrip(json);
  if (type == "StripAccents") {
    return Make([](std::string& text, bool* front) {
      MapCharacters(text, front, [](int32_t code, std::string_view bytes, std::string& out) {
        if (!IsMark(code)) out += bytes;
      });
    });
  }
  if (type == "Prepend") {
    SAGE_ASSIGN_OR_RETURN(std::string prefix, JsonString(json, "prepend", ""));
    return MakePrepend(std::move(prefix));
  }
  if (type == "Replace") {
    SAGE_ASSIGN_OR_RETURN(auto pattern, ParsePattern(json));
    SAGE_ASSIGN_OR_RETURN(std::string content, JsonString(json, "content", ""));
    return std::make_unique<ReplaceNormalizer>(std::move(pattern), std::move(content));
  }
  if (type == "Nmt") return Make(NmtNormalize);
  if (type == "ByteLevel") return Make([](std::string& text, bool*) { text = ByteLevelEncode(text); });
  if (type == "BertNormalizer") return ParseBert(json);
  if (type == "Precompiled") return ParsePrecompiled(json);
  return UnknownComponent("normalizer", type);
}

}  // namespace

absl::Status ApplyNormalizers(const Normalizers& normalizers, std::string& text, bool* removed_front) {
  for (const auto& normalizer : normalizers) {
    SAGE_RETURN_IF_ERROR(normalizer->Apply(text, removed_front));
    if (text.size() > kMaxRewrittenBytes) return RewrittenTooLong(text.size());
  }
  return absl::OkStatus();
}

absl::StatusOr<Normalizers> ParseNormalizers(const Json& json) {
  Normalizers out;
  if (json.is_null()) return out;
  std::vector<const Json*> flat;
  SAGE_RETURN_IF_ERROR(FlattenSequence(json, "normalizers", flat));
  for (const Json* one : flat) {
    SAGE_ASSIGN_OR_RETURN(auto normalizer, ParseOne(*one));
    out.push_back(std::move(normalizer));
  }
  return out;
}

std::unique_ptr<Normalizer> MakePrepend(std::string prefix) {
  return Make([prefix = std::move(prefix)](std::string& text, bool*) {
    if (!text.empty()) text.insert(0, prefix);
  });
}

std::unique_ptr<Normalizer> MakeReplaceLiteral(std::string from, std::string to) {
  return std::make_unique<ReplaceNormalizer>(*Regex::CompileLiteral(from), std::move(to));
}

std::unique_ptr<Normalizer> MakeNfc() { return MakeForm(UnicodeForm::kNfc); }

}  // namespace sage
