// Encoding and decoding through the pipeline, and the stream decoder.
#include "engine/tokenizer/pipeline.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "engine/tokenizer/unicode.h"

namespace sage {
namespace {

constexpr size_t kMaxCachedWord = 64;
constexpr size_t kMaxCachedWords = 100'000;

bool EndsWithWord(std::string_view text) {
  if (text.empty()) return false;
  size_t at = text.size() - 1;
  while (at > 0 && (static_cast<uint8_t>(text[at]) & 0xC0) == 0x80) --at;
  return IsWordCharacter(DecodeUtf8(text, at).code);
}

size_t BlanksBefore(std::string_view text, size_t at) {
  while (at > 0) {
    size_t previous = at - 1;
    while (previous > 0 && (static_cast<uint8_t>(text[previous]) & 0xC0) == 0x80) --previous;
    if (!IsWhitespace(DecodeUtf8(text, previous).code)) break;
    at = previous;
  }
  return at;
}

size_t BlanksAfter(std::string_view text, size_t at) {
  while (at < text.size()) {
    const Utf8Char c = DecodeUtf8(text, at);
    if (!IsWhitespace(c.code)) break;
    at += c.size;
  }
  return at;
}

}  // namespace

// Words seen in this call: most words of a text repeat.
struct PipelineTokenizer::WordCache {
  TextMap<std::pair<uint32_t, uint32_t>> ranges;  // into ids
  std::vector<int32_t> ids;
};

absl::Status PipelineTokenizer::AddTokens(const std::vector<AddedToken>& tokens) {
  for (AddedToken token : tokens) {
    if (token.content.empty()) continue;
    if (const auto known = added_vocabulary_.Find(token.content)) {
      added_[added_of_id_[*known]] = token;
      added_[added_of_id_[*known]].id = *known;
      continue;
    }
    if (token.id < 0) {
      const auto in_model = model->vocabulary.Find(token.content);
      token.id = in_model ? *in_model : std::max(model->vocabulary.count(), added_vocabulary_.size());
    }
    SAGE_RETURN_IF_ERROR(added_vocabulary_.Add(token.content, token.id));
    if (added_of_id_.size() <= static_cast<size_t>(token.id)) added_of_id_.resize(token.id + 1, -1);
    added_of_id_[token.id] = static_cast<int32_t>(added_.size());
    added_.push_back(std::move(token));
  }
  return absl::OkStatus();
}

absl::Status PipelineTokenizer::Finish() {
  std::vector<std::pair<std::string, int32_t>> raw, normalized;
  for (size_t i = 0; i < added_.size(); ++i) {
    std::string text = added_[i].content;
    if (!added_[i].normalized) {
      shown_.push_back(text);
      raw.push_back({std::move(text), static_cast<int32_t>(i)});
      continue;
    }
    bool removed = false;
    SAGE_RETURN_IF_ERROR(ApplyNormalizers(normalizers, text, &removed));
    shown_.push_back(text);
    normalized.push_back({std::move(text), static_cast<int32_t>(i)});
  }
  raw_index_ = PrefixIndex(std::move(raw));
  normalized_index_ = PrefixIndex(std::move(normalized));
  return absl::OkStatus();
}

std::vector<PipelineTokenizer::Stretch> PipelineTokenizer::FindAdded(const PrefixIndex& index, std::string_view text,
                                                                     bool parse_special) const {
  std::vector<Stretch> out;
  size_t done = 0;
  for (size_t at = 0; at < text.size() && !index.empty();) {
    const auto [length, which] = index.Longest(text.substr(at));
    if (length == 0) {
      ++at;
      continue;
    }
    size_t begin = at, end = at + length;
    at = end;
    const AddedToken& token = added_[which];
    if (token.special && !parse_special) continue;
    const bool inside =
        EndsWithWord(text.substr(0, begin)) || (end < text.size() && IsWordCharacter(DecodeUtf8(text, end).code));
    if (token.single_word && inside) continue;
    if (token.lstrip) begin = std::max(BlanksBefore(text, begin), done);
    if (token.rstrip) end = BlanksAfter(text, end);
    if (done < begin) out.push_back({done, begin, -1});
    out.push_back({begin, end, which});
    done = end;
  }
  if (done < text.size()) out.push_back({done, text.size(), -1});
  return out;
}

absl::Status PipelineTokenizer::EncodeWords(std::string text, bool at_start, WordCache& cache,
                                            std::vector<int32_t>& ids) const {
  WordList list;
  list.text = std::move(text);
  if (!list.text.empty()) list.words.push_back({0, list.text.size(), at_start});
  for (const auto& step : pre_tokenizers) SAGE_RETURN_IF_ERROR(step->Apply(list));
  for (const WordList::Word& word : list.words) {
    const std::string_view piece = std::string_view(list.text).substr(word.begin, word.end - word.begin);
    if (piece.empty()) continue;
    if (piece.size() > kMaxCachedWord) {
      SAGE_RETURN_IF_ERROR(model->Tokenize(piece, ids));
      continue;
    }
    auto it = cache.ranges.find(piece);
    if (it == cache.ranges.end()) {
      if (cache.ranges.size() >= kMaxCachedWords) {
        cache.ranges.clear();
        cache.ids.clear();
      }
      const uint32_t begin = static_cast<uint32_t>(cache.ids.size());
      SAGE_RETURN_IF_ERROR(model->Tokenize(piece, cache.ids));
      it = cache.ranges.emplace(std::string(piece), std::pair(begin, static_cast<uint32_t>(cache.ids.size()))).first;
    }
    ids.insert(ids.end(), cache.ids.begin() + it->second.first, cache.ids.begin() + it->second.second);
  }
  return absl::OkStatus();
}

absl::Status PipelineTokenizer::EncodeText(std::string_view text, bool at_start, bool parse_special, WordCache& cache,
                                           std::vector<int32_t>& ids) const {
  std::string normalized(text);
  bool removed_front = false;
  SAGE_RETURN_IF_ERROR(ApplyNormalizers(normalizers, normalized, &removed_front));
  for (const Stretch& s : FindAdded(normalized_index_, normalized, parse_special)) {
    if (s.added >= 0) {
      ids.push_back(added_[s.added].id);
      continue;
    }
    const bool start = at_start && s.begin == 0 && !removed_front;
    SAGE_RETURN_IF_ERROR(EncodeWords(normalized.substr(s.begin, s.end - s.begin), start, cache, ids));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<int32_t>> PipelineTokenizer::Encode(std::string_view text, bool add_special,
                                                               bool parse_special) const {
  if (text.size() > kMaxTextBytes) {
    return MakeError(absl::StatusCode::kInvalidArgument, "TEXT_TOO_LONG",
                     absl::StrCat("text: at most ", kMaxTextBytes, " bytes, got ", text.size()));
  }
  if (!IsValidUtf8(text)) {
    return MakeError(absl::StatusCode::kInvalidArgument, "TEXT_INVALID_UTF8", "text: must be valid UTF-8");
  }
  std::vector<int32_t> ids;
  if (add_special) ids = prefix_ids;
  WordCache cache;
  for (const Stretch& s : FindAdded(raw_index_, text, parse_special)) {
    if (s.added >= 0) {
      ids.push_back(added_[s.added].id);
    } else {
      SAGE_RETURN_IF_ERROR(EncodeText(text.substr(s.begin, s.end - s.begin), s.begin == 0, parse_special, cache, ids));
    }
  }
  if (add_special) ids.insert(ids.end(), suffix_ids.begin(), suffix_ids.end());
  return ids;
}

std::string PipelineTokenizer::DecodePart(absl::Span<const int32_t> ids, bool skip_special, bool first) const {
  std::vector<std::string> tokens;
  for (int32_t id : ids) {
    auto token = Shown(id);
    if (token && !(skip_special && IsSpecial(id))) tokens.push_back(*std::move(token));
  }
  return decoder.Decode(std::move(tokens), first);
}

absl::StatusOr<std::string> PipelineTokenizer::Decode(absl::Span<const int32_t> ids, bool skip_special) const {
  for (int32_t id : ids) {
    if (IdToToken(id)) continue;
    return MakeError(absl::StatusCode::kInvalidArgument, "TOKEN_OUT_OF_RANGE",
                     absl::StrCat("detokenize: ids must be in the vocabulary of ", vocab_size(), ", got ", id));
  }
  return LossyUtf8(DecodePart(ids, skip_special, true));
}

std::optional<std::string> PipelineTokenizer::TokenBytes(int32_t id, bool skip_special) const {
  const auto token = Shown(id);
  if (!token) return std::nullopt;
  if (skip_special && IsSpecial(id)) return std::string();
  if (InByteRun(id)) return std::string(1, static_cast<char>(ParseByteToken(*token)));
  return decoder.Decode({*token}, false);
}

std::optional<std::string> PipelineTokenizer::IdToToken(int32_t id) const {
  if (const std::string* text = added_vocabulary_.Text(id)) return *text;
  if (const std::string* text = model->vocabulary.Text(id)) return *text;
  return std::nullopt;
}

std::optional<std::string> PipelineTokenizer::Shown(int32_t id) const {
  if (id < 0 || static_cast<size_t>(id) >= added_of_id_.size() || added_of_id_[id] < 0) return IdToToken(id);
  return shown_[added_of_id_[id]];
}

std::optional<int32_t> PipelineTokenizer::TokenToId(std::string_view token) const {
  if (const auto id = added_vocabulary_.Find(token)) return id;
  return model->vocabulary.Find(token);
}

bool PipelineTokenizer::IsSpecial(int32_t id) const {
  if (id < 0 || static_cast<size_t>(id) >= added_of_id_.size() || added_of_id_[id] < 0) return false;
  return added_[added_of_id_[id]].special;
}

int32_t PipelineTokenizer::vocab_size() const { return std::max(model->vocabulary.size(), added_vocabulary_.size()); }

bool PipelineTokenizer::InByteRun(int32_t id) const {
  if (!decoder.has_byte_fallback()) return false;
  const auto token = IdToToken(id);
  return token && ParseByteToken(*token) >= 0;
}

std::string StreamDecoder::Append(int32_t id) {
  if (!tokenizer_.IdToToken(id) || (skip_special_ && tokenizer_.IsSpecial(id))) return "";
  if (tokenizer_.decodes_whole() || tokenizer_.InByteRun(id)) {
    held_.push_back(id);
    return "";
  }
  if (!held_.empty()) {
    pending_ += tokenizer_.DecodePart(held_, skip_special_, first_);
    held_.clear();
    first_ = false;
  }
  pending_ += tokenizer_.DecodePart(absl::MakeConstSpan(&id, 1), skip_special_, first_);
  first_ = false;
  size_t incomplete = 0;
  std::string out = LossyUtf8(pending_, &incomplete);
  pending_ = pending_.substr(pending_.size() - incomplete);
  return out;
}

std::string StreamDecoder::Flush() {
  if (!held_.empty()) pending_ += tokenizer_.DecodePart(held_, skip_special_, first_);
  held_.clear();
  first_ = false;
  std::string out = LossyUtf8(pending_);
  pending_.clear();
  return out;
}

}  // namespace sage
