// The models that cut one pre-token into vocabulary ids: BPE by merge rank, BPE by score, Unigram, WordPiece.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "engine/tokenizer/vocabulary.h"

namespace sage {

class SubwordModel {
 public:
  virtual ~SubwordModel() = default;
  // Appends the ids of `word` (valid UTF-8, not empty).
  virtual absl::Status Tokenize(std::string_view word, std::vector<int32_t>& ids) const = 0;
  virtual const char* name() const = 0;
  Vocabulary vocabulary;
};

// Hugging Face's BPE: merges have a rank, the lowest rank anywhere in the word goes first.
struct BpeModel : SubwordModel {
  struct Merge {
    uint32_t rank;
    int32_t id;
  };
  static uint64_t PairKey(int32_t left, int32_t right) {
    return (static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32) | static_cast<uint32_t>(right);
  }
  absl::flat_hash_map<uint64_t, Merge> merges;
  std::string unk_token, continuing_prefix, end_suffix;
  bool has_unk = false;
  bool fuse_unk = false, byte_fallback = false, ignore_merges = false;

  // Merges in rank order. INVALID_ARGUMENT when one names a token outside the vocabulary.
  absl::Status SetMerges(const std::vector<std::pair<std::string, std::string>>& pairs);
  absl::Status Tokenize(std::string_view word, std::vector<int32_t>& ids) const override;
  const char* name() const override { return "bpe"; }
};

// SentencePiece's BPE: any two neighbours whose text together is a piece may merge, the best score first.
struct ScoreBpeModel : SubwordModel {
  std::vector<float> scores;      // one an id
  std::vector<bool> usable;       // pieces text may become: normal, user-defined and unused ones
  std::vector<bool> unused;       // taken apart again at the end
  std::vector<int32_t> byte_ids;  // 256 ids, or empty without byte fallback
  PrefixIndex user_defined;       // taken whole before any merge
  int32_t unk_id = -1;
  bool fuse_unk = true;

  absl::Status Tokenize(std::string_view word, std::vector<int32_t>& ids) const override;
  const char* name() const override { return "sentencepiece-bpe"; }
};

// The most probable segmentation (Viterbi).
struct UnigramModel : SubwordModel {
  std::vector<double> scores;
  PrefixIndex pieces;
  int32_t unk_id = -1;
  bool byte_fallback = false;
  bool single_precision = false;   // SentencePiece adds in float, Hugging Face in double
  std::vector<bool> user_defined;  // SentencePiece prefers these whatever their score; may be empty
  double min_score = 0, max_score = 0;

  absl::Status Tokenize(std::string_view word, std::vector<int32_t>& ids) const override;
  const char* name() const override { return "unigram"; }
};

// BERT's greedy longest match.
struct WordPieceModel : SubwordModel {
  std::string unk_token = "[UNK]", continuing_prefix = "##";
  int64_t max_chars = 100;

  absl::Status Tokenize(std::string_view word, std::vector<int32_t>& ids) const override;
  const char* name() const override { return "wordpiece"; }
};

// "<0x41>" for 0x41.
std::string ByteToken(uint8_t byte);
// The byte of such a token (either case), or -1.
int ParseByteToken(std::string_view token);
// The ids of all 256 byte tokens, or nothing when one is missing.
std::vector<int32_t> FindByteTokens(const Vocabulary& vocabulary);

}  // namespace sage
