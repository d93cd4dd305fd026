// Text to ids and back, for every tokenizer file real models ship with.
//
// `Encode` and `Decode` agree id for id with Hugging Face tokenizers 0.23 (tokenizer.json, SentencePiece) and with
// llama.cpp's vocabulary vectors (GGUF). A tokenizer is immutable after loading and may be used from many threads at
// once.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "engine/base/json.h"

namespace sage {

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  // `add_special`: what the file's post-processor adds (BOS, EOS). Special tokens written out in `text` are recognised
  // when `parse_special` is set and are otherwise ordinary text. INVALID_ARGUMENT on invalid UTF-8 or over
  // `kMaxTextBytes`.
  virtual absl::StatusOr<std::vector<int32_t>> Encode(std::string_view text, bool add_special,
                                                      bool parse_special = true) const = 0;
  // The text of `ids`; bytes that form no UTF-8 character become U+FFFD as Hugging Face does. INVALID_ARGUMENT on an id
  // outside the vocabulary.
  virtual absl::StatusOr<std::string> Decode(absl::Span<const int32_t> ids, bool skip_special) const = 0;
  // The raw bytes one id stands for in the middle of a text (what streaming appends); empty for special tokens when
  // `skip_special`. nullopt outside the vocabulary.
  virtual std::optional<std::string> TokenBytes(int32_t id, bool skip_special) const = 0;
  // The vocabulary's own spelling ("Ġthe", "<|im_end|>").
  virtual std::optional<std::string> IdToToken(int32_t id) const = 0;
  virtual std::optional<int32_t> TokenToId(std::string_view token) const = 0;
  virtual bool IsSpecial(int32_t id) const = 0;
  virtual int32_t vocab_size() const = 0;  // largest id + 1
  virtual std::optional<int32_t> bos_id() const = 0;
  virtual std::optional<int32_t> eos_id() const = 0;
  // For StreamDecoder: the bytes of `ids` as they stand in a text, at its beginning when `first`. `ids` is one token,
  // or a whole run of tokens of which `InByteRun` is true (byte fallback decides on such a run as a whole).
  virtual std::string DecodePart(absl::Span<const int32_t> ids, bool skip_special, bool first) const = 0;
  virtual bool InByteRun(int32_t id) const = 0;
  // True when the decoder can only see the text as a whole; then nothing is streamed before the end.
  virtual bool decodes_whole() const = 0;
  virtual std::string kind() const = 0;  // "bpe", "unigram", "sentencepiece", "gguf:gpt-2", ... for logs and reports

  static constexpr size_t kMaxTextBytes = size_t{64} << 20;
};

// What comes with a tokenizer: the chat template and the names templates may use.
struct TokenizerFiles {
  std::shared_ptr<const Tokenizer> tokenizer;
  std::string chat_template;         // empty when the model has none
  std::string tool_template;         // the named template "tool_use", for conversations with tools; may be empty
  std::string bos_token, eos_token;  // texts handed to the template
  std::string fingerprint;           // sha256 of the files it was read from
};

// Reads a model folder: tokenizer.json, else vocab.json + merges.txt (with tokenizer_config.json), else tokenizer.model
// (SentencePiece), else llama2.c tokenizer.bin; the chat template from chat_template.jinja or tokenizer_config.json (a
// list of named templates: "default" and "tool_use"). `path` may also be a .gguf file. NOT_FOUND with reason
// TOKENIZER_NOT_FOUND when there is none.
absl::StatusOr<TokenizerFiles> LoadTokenizer(const std::string& path);
// From GGUF metadata ("tokenizer.ggml.*"). `fingerprint` is left empty.
absl::StatusOr<TokenizerFiles> LoadGgufTokenizer(const Json& metadata);

// Turns a stream of ids into pieces of text that are always whole UTF-8 characters.
class StreamDecoder {
 public:
  // `continues`: text stands before the first id, so the space that some tokenizers strip from a beginning is kept.
  StreamDecoder(const Tokenizer& tokenizer, bool skip_special, bool continues = false)
      : tokenizer_(tokenizer), skip_special_(skip_special), first_(!continues) {}
  // Text that became complete with this id; may be empty. The concatenation of all pieces plus Flush() equals
  // Decode(all ids), or what Decode(earlier ids + all ids) adds to Decode(earlier ids) when the text continues.
  std::string Append(int32_t id);
  // What is left at the end (an incomplete character becomes U+FFFD).
  std::string Flush();

 private:
  const Tokenizer& tokenizer_;
  bool skip_special_;
  bool first_;
  std::string pending_;        // bytes of a character that is not complete yet
  std::vector<int32_t> held_;  // a run of byte tokens, or everything when the decoder needs the whole text
};

}  // namespace sage
