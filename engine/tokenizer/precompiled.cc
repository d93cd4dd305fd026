// SentencePiece's character map and the normalizer built on it.
#include <cstring>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "engine/tokenizer/normalizer.h"
#include "engine/tokenizer/unicode.h"

namespace sage {
namespace {

// The fields of a Darts double-array unit.
bool HasLeaf(uint32_t unit) { return (unit >> 8) & 1; }
uint32_t Value(uint32_t unit) { return unit & 0x7FFFFFFFu; }
uint32_t Label(uint32_t unit) { return unit & 0x800000FFu; }
uint32_t Offset(uint32_t unit) { return (unit >> 10) << ((unit & 0x200u) >> 6); }

constexpr std::string_view kSpaceMark = "\xE2\x96\x81";

class SentencePieceNormalizer : public Normalizer {
 public:
  explicit SentencePieceNormalizer(SentencePieceRules rules) : rules_(std::move(rules)) {}

  absl::Status Apply(std::string& text, bool*) const override {
    std::string_view in = text;
    std::string_view part;
    if (rules_.remove_extra_whitespaces) {
      while (!in.empty()) {
        const size_t used = Next(in, &part);
        if (part != " ") break;
        in.remove_prefix(used);
      }
    }
    std::string out;
    if (in.empty()) {
      text.clear();
      return absl::OkStatus();
    }
    out.reserve(in.size() * 3 / 2);
    if (rules_.add_dummy_prefix && !rules_.whitespace_as_suffix) out += Space();
    bool last_space = rules_.remove_extra_whitespaces;
    while (!in.empty()) {
      const size_t used = Next(in, &part);
      if (last_space) {
        while (!part.empty() && part.front() == ' ') part.remove_prefix(1);
      }
      for (char c : part) {
        if (c == ' ') {
          out += Space();
        } else {
          out += c;
        }
      }
      if (!part.empty()) last_space = part.back() == ' ';
      if (!rules_.remove_extra_whitespaces) last_space = false;
      in.remove_prefix(used);
    }
    if (rules_.remove_extra_whitespaces) {
      while (out.size() >= Space().size() && out.ends_with(Space())) out.erase(out.size() - Space().size());
    }
    if (rules_.add_dummy_prefix && rules_.whitespace_as_suffix) out += Space();
    text = std::move(out);
    return absl::OkStatus();
  }

 private:
  std::string_view Space() const { return rules_.escape_whitespaces ? kSpaceMark : std::string_view(" "); }

  // What the front of `in` becomes; returns how many bytes it stands for.
  size_t Next(std::string_view in, std::string_view* part) const {
    size_t used = rules_.user_defined.Longest(in).first;
    if (used == 0) {
      used = rules_.map.Find(in, true, part);
      if (used > 0) return used;
      used = DecodeUtf8(in, 0).size;
    }
    *part = in.substr(0, used);
    return used;
  }

  SentencePieceRules rules_;
};

}  // namespace

absl::StatusOr<PrecompiledMap> PrecompiledMap::Parse(std::string_view blob) {
  PrecompiledMap map;
  if (blob.empty()) return map;
  uint32_t bytes = 0;
  if (blob.size() >= 4) std::memcpy(&bytes, blob.data(), 4);
  if (blob.size() < 4 || bytes > blob.size() - 4 || bytes % 4 != 0 || bytes == 0) {
    return MakeError(
        absl::StatusCode::kInvalidArgument, "TOKENIZER_INVALID",
        absl::StrCat("precompiled_charsmap: the trie must fit the blob, got ", bytes, " of ", blob.size(), " bytes"));
  }
  map.units_.resize(bytes / 4);
  std::memcpy(map.units_.data(), blob.data() + 4, bytes);
  map.replacements_ = std::string(blob.substr(4 + bytes));
  if (!IsValidUtf8(map.replacements_)) {
    return MakeError(absl::StatusCode::kInvalidArgument, "TOKENIZER_INVALID",
                     "precompiled_charsmap: replacement texts must be valid UTF-8");
  }
  return map;
}

size_t PrecompiledMap::Find(std::string_view text, bool longest, std::string_view* replacement) const {
  if (units_.empty()) return 0;
  size_t node = Offset(units_[0]);
  size_t found = 0;
  for (size_t i = 0; i < text.size() && text[i] != 0; ++i) {
    const uint8_t byte = static_cast<uint8_t>(text[i]);
    node ^= byte;
    if (node >= units_.size() || Label(units_[node]) != byte) break;
    const uint32_t unit = units_[node];
    node ^= Offset(unit);
    if (node >= units_.size()) break;
    if (!HasLeaf(unit)) continue;
    const size_t at = Value(units_[node]);
    // A value that points into the middle of a character or outside is no replacement.
    if (at > replacements_.size() ||
        (at < replacements_.size() && (static_cast<uint8_t>(replacements_[at]) & 0xC0) == 0x80)) {
      break;
    }
    *replacement = std::string_view(replacements_).substr(at);
    *replacement = replacement->substr(0, replacement->find('\0'));
    found = i + 1;
    if (!longest) break;
  }
  return found;
}

std::unique_ptr<Normalizer> MakeSentencePieceNormalizer(SentencePieceRules rules) {
  return std::make_unique<SentencePieceNormalizer>(std::move(rules));
}

}  // namespace sage
