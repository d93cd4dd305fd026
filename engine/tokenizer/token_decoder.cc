// Hugging Face's decoders.
#include "engine/tokenizer/token_decoder.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "engine/base/status.h"
#include "engine/tokenizer/pattern.h"
#include "engine/tokenizer/subword_model.h"
#include "engine/tokenizer/unicode.h"

namespace sage {
namespace {

using Tokens = std::vector<std::string>;
constexpr const char* kMark = "\xE2\x96\x81";

void FlushBytes(std::string& run, Tokens& out) {
  if (run.empty()) return;
  if (IsValidUtf8(run)) {
    out.push_back(run);
  } else {
    for (size_t i = 0; i < run.size(); ++i) out.push_back("\xEF\xBF\xBD");
  }
  run.clear();
}

Tokens FallbackBytes(const Tokens& tokens) {
  Tokens out;
  std::string run;
  for (const std::string& token : tokens) {
    const int byte = ParseByteToken(token);
    if (byte >= 0) {
      run += static_cast<char>(byte);
      continue;
    }
    FlushBytes(run, out);
    out.push_back(token);
  }
  FlushBytes(run, out);
  return out;
}

void StripToken(const DecodeStep& step, bool at_start, std::string& token) {
  size_t begin = 0, end = token.size();
  for (size_t i = 0; at_start && i < step.start && !step.text.empty(); ++i) {
    if (token.compare(begin, step.text.size(), step.text) != 0) break;
    begin += step.text.size();
  }
  for (size_t i = 0; i < step.stop && !step.text.empty(); ++i) {
    if (end < begin + step.text.size() || token.compare(end - step.text.size(), step.text.size(), step.text) != 0)
      break;
    end -= step.text.size();
  }
  token = token.substr(begin, end - begin);
}

void Join(Tokens& tokens) {
  std::string all;
  for (const std::string& token : tokens) all += token;
  tokens = {std::move(all)};
}

void Cleanup(std::string& text) {
  absl::StrReplaceAll({{" .", "."},
                       {" ?", "?"},
                       {" !", "!"},
                       {" ,", ","},
                       {" ' ", "'"},
                       {" n't", "n't"},
                       {" 'm", "'m"},
                       {" do not", " don't"},
                       {" 's", "'s"},
                       {" 've", "'ve"},
                       {" 're", "'re"}},
                      &text);
}

void ApplyToToken(const DecodeStep& step, bool index_zero, bool last, std::string& token) {
  if (step.kind == DecodeStep::Kind::kReplace) {
    std::vector<TextRange> matches;
    if (!token.empty() && step.pattern->FindAll(token, matches).ok())
      ReplaceMatches(token, matches, step.text).IgnoreError();
  } else if (step.kind == DecodeStep::Kind::kMetaspace) {
    absl::StrReplaceAll({{step.text, index_zero && step.flag ? "" : " "}}, &token);
  } else if (step.kind == DecodeStep::Kind::kWordPiece) {
    if (!index_zero) token = token.rfind(step.text, 0) == 0 ? token.substr(step.text.size()) : " " + token;
    if (step.flag) Cleanup(token);
  } else if (step.kind == DecodeStep::Kind::kBpe) {
    absl::StrReplaceAll({{step.text, last ? "" : " "}}, &token);
  }
}

absl::StatusOr<DecodeStep> ParseStep(const Json& json) {
  using Kind = DecodeStep::Kind;
  SAGE_ASSIGN_OR_RETURN(const std::string type, JsonString(json, "type", ""));
  DecodeStep step{Kind::kFuse, nullptr, "", 0, 0, false};
  if (type == "Fuse") return step;
  if (type == "ByteLevel") {
    step.kind = Kind::kByteLevel;
  } else if (type == "ByteFallback") {
    step.kind = Kind::kByteFallback;
  } else if (type == "Replace") {
    step.kind = Kind::kReplace;
    SAGE_ASSIGN_OR_RETURN(step.pattern, ParsePattern(json));
    SAGE_ASSIGN_OR_RETURN(step.text, JsonString(json, "content", ""));
  } else if (type == "Strip") {
    step.kind = Kind::kStrip;
    SAGE_ASSIGN_OR_RETURN(step.text, JsonString(json, "content", " "));
    SAGE_ASSIGN_OR_RETURN(const int64_t start, JsonInt(json, "start", 0));
    SAGE_ASSIGN_OR_RETURN(const int64_t stop, JsonInt(json, "stop", 0));
    step.start = static_cast<size_t>(std::max<int64_t>(0, start));
    step.stop = static_cast<size_t>(std::max<int64_t>(0, stop));
  } else if (type == "Metaspace") {
    step.kind = Kind::kMetaspace;
    SAGE_ASSIGN_OR_RETURN(step.text, JsonString(json, "replacement", kMark));
    SAGE_ASSIGN_OR_RETURN(const bool prefix, JsonBool(json, "add_prefix_space", true));
    SAGE_ASSIGN_OR_RETURN(const std::string scheme, JsonString(json, "prepend_scheme", prefix ? "always" : "never"));
    step.flag = scheme != "never";
  } else if (type == "WordPiece") {
    step.kind = Kind::kWordPiece;
    SAGE_ASSIGN_OR_RETURN(step.text, JsonString(json, "prefix", "##"));
    SAGE_ASSIGN_OR_RETURN(step.flag, JsonBool(json, "cleanup", true));
  } else if (type == "BPEDecoder") {
    step.kind = Kind::kBpe;
    SAGE_ASSIGN_OR_RETURN(step.text, JsonString(json, "suffix", "</w>"));
  } else {
    return UnknownComponent("decoder", type);
  }
  return step;
}

}  // namespace

std::string TokenDecoder::Decode(Tokens tokens, bool first) const {
  bool fused = false;
  for (const DecodeStep& step : steps) {
    switch (step.kind) {
      case DecodeStep::Kind::kByteLevel:
        for (std::string& token : tokens) token = ByteLevelDecode(token);
        Join(tokens);
        fused = true;
        break;
      case DecodeStep::Kind::kByteFallback:
        tokens = FallbackBytes(tokens);
        break;
      case DecodeStep::Kind::kFuse:
        Join(tokens);
        fused = true;
        break;
      case DecodeStep::Kind::kStrip:
        for (std::string& token : tokens) StripToken(step, first || !fused, token);
        break;
      default:
        for (size_t i = 0; i < tokens.size(); ++i)
          ApplyToToken(step, i == 0 && first, i + 1 == tokens.size(), tokens[i]);
    }
  }
  std::string out;
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (join_with_space && !(i == 0 && first)) out += ' ';
    out += tokens[i];
  }
  return out;
}

bool TokenDecoder::has_byte_fallback() const {
  for (const DecodeStep& step : steps) {
    if (step.kind == DecodeStep::Kind::kByteFallback) return true;
  }
  return false;
}

bool TokenDecoder::needs_whole_text() const {
  bool fused = false;
  for (const DecodeStep& step : steps) {
    const bool strip = step.kind == DecodeStep::Kind::kStrip;
    if (step.kind == DecodeStep::Kind::kBpe) return true;  // the last token is special
    if (fused && !(strip && step.stop == 0 && step.start <= 1)) return true;
    fused = fused || step.kind == DecodeStep::Kind::kFuse || step.kind == DecodeStep::Kind::kByteLevel;
  }
  return false;
}

absl::StatusOr<TokenDecoder> ParseTokenDecoder(const Json& json) {
  TokenDecoder out;
  out.join_with_space = json.is_null();
  if (json.is_null()) return out;
  std::vector<const Json*> flat;
  SAGE_RETURN_IF_ERROR(FlattenSequence(json, "decoders", flat));
  for (const Json* one : flat) {
    SAGE_ASSIGN_OR_RETURN(DecodeStep step, ParseStep(*one));
    out.steps.push_back(std::move(step));
  }
  return out;
}

TokenDecoder SpmDecoder(bool strip) {
  using Kind = DecodeStep::Kind;
  TokenDecoder out;
  out.steps.push_back({Kind::kReplace, *Regex::CompileLiteral(kMark), " ", 0, 0, false});
  out.steps.push_back({Kind::kByteFallback, nullptr, "", 0, 0, false});
  out.steps.push_back({Kind::kFuse, nullptr, "", 0, 0, false});
  if (strip) out.steps.push_back({Kind::kStrip, nullptr, " ", 1, 0, false});
  return out;
}

}  // namespace sage
