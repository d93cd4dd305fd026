// The one tokenizer class: added tokens, normalizers, pre-tokenizers, a model, special ids, a decoder chain.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "engine/tokenizer/normalizer.h"
#include "engine/tokenizer/pre_tokenizer.h"
#include "engine/tokenizer/subword_model.h"
#include "engine/tokenizer/token_decoder.h"
#include "engine/tokenizer/tokenizer.h"

namespace sage {

struct AddedToken {
  int32_t id = -1;
  std::string content;
  bool special = false, single_word = false, lstrip = false, rstrip = false, normalized = false;
};

class PipelineTokenizer : public Tokenizer {
 public:
  std::unique_ptr<SubwordModel> model;
  Normalizers normalizers;
  PreTokenizers pre_tokenizers;
  TokenDecoder decoder;
  std::vector<int32_t> prefix_ids, suffix_ids;  // what add_special puts around the text
  std::optional<int32_t> bos, eos;
  std::string kind_name;

  // An id below zero is assigned as Hugging Face does: the model's, or the next free one.
  absl::Status AddTokens(const std::vector<AddedToken>& tokens);
  absl::Status Finish();  // call once, when all members are set

  absl::StatusOr<std::vector<int32_t>> Encode(std::string_view text, bool add_special,
                                              bool parse_special) const override;
  absl::StatusOr<std::string> Decode(absl::Span<const int32_t> ids, bool skip_special) const override;
  std::optional<std::string> TokenBytes(int32_t id, bool skip_special) const override;
  std::optional<std::string> IdToToken(int32_t id) const override;
  std::optional<int32_t> TokenToId(std::string_view token) const override;
  bool IsSpecial(int32_t id) const override;
  int32_t vocab_size() const override;
  std::optional<int32_t> bos_id() const override { return bos; }
  std::optional<int32_t> eos_id() const override { return eos; }
  std::string DecodePart(absl::Span<const int32_t> ids, bool skip_special, bool first) const override;
  bool InByteRun(int32_t id) const override;
  bool decodes_whole() const override { return decoder.needs_whole_text(); }
  std::string kind() const override { return kind_name; }

 private:
  struct Stretch {
    size_t begin, end;
    int32_t added;  // index into added_, or -1 for text
  };
  struct WordCache;
  std::vector<Stretch> FindAdded(const PrefixIndex& index, std::string_view text, bool parse_special) const;
  absl::Status EncodeText(std::string_view text, bool at_start, bool parse_special, WordCache& cache,
                          std::vector<int32_t>& ids) const;
  absl::Status EncodeWords(std::string text, bool at_start, WordCache& cache, std::vector<int32_t>& ids) const;

  // How a token appears in decoded text: Hugging Face normalizes a normalized added token there too.
  std::optional<std::string> Shown(int32_t id) const;

  Vocabulary added_vocabulary_;
  std::vector<AddedToken> added_;
  std::vector<std::string> shown_;  // one an added token
  std::vector<int32_t> added_of_id_;
  PrefixIndex raw_index_, normalized_index_;
};

}  // namespace sage
