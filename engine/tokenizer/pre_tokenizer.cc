// Hugging Face's pre-tokenizers.
#include "engine/tokenizer/pre_tokenizer.h"

#include <algorithm>
#include <functional>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "engine/tokenizer/pattern.h"
#include "engine/tokenizer/unicode.h"

namespace sage {
namespace {

constexpr std::string_view kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

// A stretch of a word, and whether the pattern matched it.
struct Part {
  size_t begin;
  size_t end;
  bool match;
};

void PartsOfMatches(size_t size, const std::vector<TextRange>& matches, std::vector<Part>& parts) {
  size_t at = 0;
  for (const TextRange& match : matches) {
    if (at != match.begin) parts.push_back({at, match.begin, false});
    parts.push_back({match.begin, match.end, true});
    at = match.end;
  }
  if (at != size) parts.push_back({at, size, false});
}

// `parts` covers the word; joins them as the behaviour says and drops the empty ones.
void JoinParts(std::vector<Part>& parts, SplitBehavior behavior) {
  std::vector<Part> out;
  bool previous = false;
  switch (behavior) {
    case SplitBehavior::kIsolated:
      return;
    case SplitBehavior::kRemoved:
      std::erase_if(parts, [](const Part& p) { return p.match; });
      return;
    case SplitBehavior::kContiguous:
      for (const Part& part : parts) {
        if (!out.empty() && part.match == previous) {
          out.back().end = part.end;
        } else {
          out.push_back(part);
        }
        previous = part.match;
      }
      break;
    case SplitBehavior::kMergedWithPrevious:
      for (const Part& part : parts) {
        if (part.match && !previous && !out.empty()) {
          out.back().end = part.end;
        } else {
          out.push_back(part);
        }
        previous = part.match;
      }
      break;
    case SplitBehavior::kMergedWithNext:
      for (auto part = parts.rbegin(); part != parts.rend(); ++part) {
        if (part->match && !previous && !out.empty()) {
          out.back().begin = part->begin;
        } else {
          out.push_back(*part);
        }
        previous = part->match;
      }
      std::reverse(out.begin(), out.end());
      break;
  }
  parts = std::move(out);
}

// A pre-tokenizer that only cuts: the derived class says which stretches of a word match.
class Splitter : public PreTokenizer {
 public:
  Splitter(SplitBehavior behavior, bool invert) : behavior_(behavior), invert_(invert) {}
  absl::Status Apply(WordList& list) const override {
    std::vector<WordList::Word> out;
    out.reserve(list.words.size() * 2);
    std::vector<Part> parts;
    for (const WordList::Word& word : list.words) {
      parts.clear();
      const std::string_view text = std::string_view(list.text).substr(word.begin, word.end - word.begin);
      SAGE_RETURN_IF_ERROR(Find(text, parts));
      if (invert_) {
        for (Part& part : parts) part.match = !part.match;
      }
      JoinParts(parts, behavior_);
      for (const Part& part : parts) {
        if (part.begin == part.end) continue;
        out.push_back({word.begin + part.begin, word.begin + part.end, word.at_start && part.begin == 0});
      }
    }
    list.words = std::move(out);
    return absl::OkStatus();
  }

 protected:
  virtual absl::Status Find(std::string_view text, std::vector<Part>& parts) const = 0;

 private:
  SplitBehavior behavior_;
  bool invert_;
};

class RegexSplitter : public Splitter {
 public:
  RegexSplitter(std::shared_ptr<const Regex> pattern, SplitBehavior behavior, bool invert)
      : Splitter(behavior, invert), pattern_(std::move(pattern)) {}

 protected:
  absl::Status Find(std::string_view text, std::vector<Part>& parts) const override {
    std::vector<TextRange> matches;
    SAGE_RETURN_IF_ERROR(pattern_->FindAll(text, matches));
    PartsOfMatches(text.size(), matches, parts);
    return absl::OkStatus();
  }

 private:
  std::shared_ptr<const Regex> pattern_;
};

// Each character of a class is a match of its own.
class ClassSplitter : public Splitter {
 public:
  using Predicate = std::function<bool(int32_t)>;
  ClassSplitter(Predicate predicate, SplitBehavior behavior)
      : Splitter(behavior, false), predicate_(std::move(predicate)) {}

 protected:
  absl::Status Find(std::string_view text, std::vector<Part>& parts) const override {
    size_t begin = 0;
    for (size_t at = 0; at < text.size();) {
      const Utf8Char c = DecodeUtf8(text, at);
      if (predicate_(c.code)) {
        if (begin < at) parts.push_back({begin, at, false});
        parts.push_back({at, at + c.size, true});
        begin = at + c.size;
      }
      at += c.size;
    }
    if (begin < text.size()) parts.push_back({begin, text.size(), false});
    return absl::OkStatus();
  }

 private:
  Predicate predicate_;
};

// Runs of word characters and runs of what is neither word nor blank.
class WhitespaceSplitter : public Splitter {
 public:
  WhitespaceSplitter() : Splitter(SplitBehavior::kRemoved, true) {}

 protected:
  absl::Status Find(std::string_view text, std::vector<Part>& parts) const override {
    int last = -1;
    for (size_t at = 0; at < text.size();) {
      const Utf8Char c = DecodeUtf8(text, at);
      const int kind = IsWordCharacter(c.code) ? 0 : IsWhitespace(c.code) ? 2 : 1;
      if (kind == last) {
        parts.back().end = at + c.size;
      } else {
        parts.push_back({at, at + c.size, kind != 2});
      }
      last = kind;
      at += c.size;
    }
    return absl::OkStatus();
  }
};

class LengthSplitter : public Splitter {
 public:
  explicit LengthSplitter(size_t length) : Splitter(SplitBehavior::kIsolated, false), length_(length) {}

 protected:
  absl::Status Find(std::string_view text, std::vector<Part>& parts) const override {
    size_t begin = 0, count = 0;
    for (size_t at = 0; at < text.size();) {
      at += DecodeUtf8(text, at).size;
      if (++count == length_ || at == text.size()) {
        parts.push_back({begin, at, true});
        begin = at;
        count = 0;
      }
    }
    return absl::OkStatus();
  }

 private:
  size_t length_;
};

// Rewrites every word; `rewrite(word, at_start, out)` appends the new text.
template <typename F>
absl::Status RewriteWords(WordList& list, F&& rewrite) {
  std::string out;
  out.reserve(list.text.size() + list.text.size() / 2);
  for (WordList::Word& word : list.words) {
    const size_t begin = out.size();
    rewrite(std::string_view(list.text).substr(word.begin, word.end - word.begin), word.at_start, out);
    if (out.size() > kMaxRewrittenBytes) return RewrittenTooLong(out.size());
    word.begin = begin;
    word.end = out.size();
  }
  list.text = std::move(out);
  return absl::OkStatus();
}

class ByteLevelPreTokenizer : public PreTokenizer {
 public:
  ByteLevelPreTokenizer(bool add_prefix_space, bool use_regex) : prefix_(add_prefix_space) {
    if (use_regex) split_ = MakeSplit(*Regex::Compile(kGpt2Pattern), SplitBehavior::kIsolated, false);
  }
  absl::Status Apply(WordList& list) const override {
    if (prefix_) {
      SAGE_RETURN_IF_ERROR(RewriteWords(list, [](std::string_view word, bool, std::string& out) {
        if (!word.starts_with(' ') && !word.empty()) out += ' ';
        out += word;
      }));
    }
    if (split_) SAGE_RETURN_IF_ERROR(split_->Apply(list));
    return RewriteWords(list, [](std::string_view word, bool, std::string& out) {
      for (char c : word) out += ByteLevelChar(static_cast<uint8_t>(c));
    });
  }

 private:
  bool prefix_;
  std::unique_ptr<PreTokenizer> split_;
};

class MetaspacePreTokenizer : public PreTokenizer {
 public:
  MetaspacePreTokenizer(std::string mark, std::string scheme, bool split)
      : mark_(std::move(mark)), scheme_(std::move(scheme)) {
    if (split) split_ = MakeSplit(*Regex::CompileLiteral(mark_), SplitBehavior::kMergedWithNext, false);
  }
  absl::Status Apply(WordList& list) const override {
    SAGE_RETURN_IF_ERROR(RewriteWords(list, [this](std::string_view word, bool at_start, std::string& out) {
      const bool wanted = scheme_ == "always" || (scheme_ == "first" && at_start);
      if (wanted && !word.empty() && word.front() != ' ' && !word.starts_with(mark_)) out += mark_;
      for (char c : word) {
        if (c == ' ') {
          out += mark_;
        } else {
          out += c;
        }
      }
    }));
    return split_ ? split_->Apply(list) : absl::OkStatus();
  }

 private:
  std::string mark_, scheme_;
  std::unique_ptr<PreTokenizer> split_;
};

absl::StatusOr<SplitBehavior> ParseBehavior(const Json& json, const char* fallback) {
  SAGE_ASSIGN_OR_RETURN(const std::string name, JsonString(json, "behavior", fallback));
  if (name == "Removed") return SplitBehavior::kRemoved;
  if (name == "Isolated") return SplitBehavior::kIsolated;
  if (name == "MergedWithPrevious") return SplitBehavior::kMergedWithPrevious;
  if (name == "MergedWithNext") return SplitBehavior::kMergedWithNext;
  if (name == "Contiguous") return SplitBehavior::kContiguous;
  return MakeError(absl::StatusCode::kInvalidArgument, "TOKENIZER_INVALID",
                   absl::StrCat("tokenizer.json: behavior must be Removed, Isolated, MergedWithPrevious, "
                                "MergedWithNext or Contiguous, got '",
                                name.substr(0, 80), "'"));
}

absl::StatusOr<std::unique_ptr<PreTokenizer>> ParseMetaspace(const Json& json) {
  SAGE_ASSIGN_OR_RETURN(std::string mark, JsonString(json, "replacement", "\xE2\x96\x81"));
  SAGE_ASSIGN_OR_RETURN(const bool legacy, JsonBool(json, "add_prefix_space", true));
  SAGE_ASSIGN_OR_RETURN(std::string scheme, JsonString(json, "prepend_scheme", legacy ? "always" : "never"));
  SAGE_ASSIGN_OR_RETURN(const bool split, JsonBool(json, "split", true));
  if (mark.empty() || DecodeUtf8(mark, 0).size != mark.size() ||
      (scheme != "first" && scheme != "always" && scheme != "never")) {
    return MakeError(absl::StatusCode::kInvalidArgument, "TOKENIZER_INVALID",
                     "tokenizer.json Metaspace: replacement is one character, prepend_scheme first, always or never");
  }
  return std::make_unique<MetaspacePreTokenizer>(std::move(mark), std::move(scheme), split);
}

std::unique_ptr<PreTokenizer> MakeClass(ClassSplitter::Predicate predicate, SplitBehavior behavior) {
  return std::make_unique<ClassSplitter>(std::move(predicate), behavior);
}

absl::StatusOr<std::unique_ptr<PreTokenizer>> ParseSplit(const Json& json) {
  SAGE_ASSIGN_OR_RETURN(auto pattern, ParsePattern(json));
  SAGE_ASSIGN_OR_RETURN(const SplitBehavior behavior, ParseBehavior(json, ""));
  SAGE_ASSIGN_OR_RETURN(const bool invert, JsonBool(json, "invert", false));
  return MakeSplit(std::move(pattern), behavior, invert);
}

absl::Status ParseOne(const Json& json, PreTokenizers& out) {
  SAGE_ASSIGN_OR_RETURN(const std::string type, JsonString(json, "type", ""));
  if (type == "ByteLevel") {
    SAGE_ASSIGN_OR_RETURN(const bool prefix, JsonBool(json, "add_prefix_space", true));
    SAGE_ASSIGN_OR_RETURN(const bool regex, JsonBool(json, "use_regex", true));
    out.push_back(MakeByteLevel(prefix, regex));
  } else if (type == "Split") {
    SAGE_ASSIGN_OR_RETURN(auto split, ParseSplit(json));
    out.push_back(std::move(split));
  } else if (type == "Digits") {
    SAGE_ASSIGN_OR_RETURN(const bool individual, JsonBool(json, "individual_digits", false));
    out.push_back(MakeClass(IsNumeric, individual ? SplitBehavior::kIsolated : SplitBehavior::kContiguous));
  } else if (type == "Whitespace") {
    out.push_back(std::make_unique<WhitespaceSplitter>());
  } else if (type == "WhitespaceSplit") {
    out.push_back(MakeClass(IsWhitespace, SplitBehavior::kRemoved));
  } else if (type == "Punctuation") {
    SAGE_ASSIGN_OR_RETURN(const SplitBehavior behavior, ParseBehavior(json, "Isolated"));
    out.push_back(MakeClass(IsPunctuation, behavior));
  } else if (type == "BertPreTokenizer") {
    out.push_back(MakeClass(IsWhitespace, SplitBehavior::kRemoved));
    out.push_back(MakeClass(IsPunctuation, SplitBehavior::kIsolated));
  } else if (type == "CharDelimiterSplit") {
    SAGE_ASSIGN_OR_RETURN(const std::string delimiter, JsonString(json, "delimiter", ""));
    const int32_t code = DecodeUtf8(delimiter, 0).code;
    out.push_back(MakeClass([code](int32_t c) { return c == code; }, SplitBehavior::kRemoved));
  } else if (type == "FixedLength") {
    SAGE_ASSIGN_OR_RETURN(const int64_t length, JsonInt(json, "length", 5));
    if (length <= 0) return UnknownComponent("FixedLength of length <= 0, pre_tokenizer", type);
    out.push_back(std::make_unique<LengthSplitter>(static_cast<size_t>(length)));
  } else if (type == "Metaspace") {
    SAGE_ASSIGN_OR_RETURN(auto metaspace, ParseMetaspace(json));
    out.push_back(std::move(metaspace));
  } else {
    return UnknownComponent("pre_tokenizer", type);
  }
  return absl::OkStatus();
}

}  // namespace

std::unique_ptr<PreTokenizer> MakeSplit(std::shared_ptr<const Regex> pattern, SplitBehavior behavior, bool invert) {
  return std::make_unique<RegexSplitter>(std::move(pattern), behavior, invert);
}

std::unique_ptr<PreTokenizer> MakeByteLevel(bool add_prefix_space, bool use_regex) {
  return std::make_unique<ByteLevelPreTokenizer>(add_prefix_space, use_regex);
}

absl::StatusOr<PreTokenizers> ParsePreTokenizers(const Json& json) {
  PreTokenizers out;
  if (json.is_null()) return out;
  std::vector<const Json*> flat;
  SAGE_RETURN_IF_ERROR(FlattenSequence(json, "pretokenizers", flat));
  for (const Json* one : flat) SAGE_RETURN_IF_ERROR(ParseOne(*one, out));
  return out;
}

}  // namespace sage
