// The tensors of a checkpoint as they go into a GGUF file, one at a time: which ggml type each gets, and its bytes.
#pragma once

#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/base/thread_pool.h"
#include "engine/runtime/artifact_source.h"
#include "engine/runtime/gguf_scheme.h"

namespace sage {

struct GgufData {
  GgmlType type = GgmlType::kF32;
  std::vector<uint8_t> bytes;
  const char* how = "";  // "blocks copied", "codes kept", "quantized", "floats kept", "floats"
  std::string note;      // why the type is not the one that was asked for; empty otherwise
};

class GgufTensors {
 public:
  struct Item {
    std::string name, hf_name;
    Shape shape;
    std::optional<LinearSlot> linear;  // null: a norm, a bias, embeddings or rope factors
  };

  // `source` and `threads` must outlive the object. UNIMPLEMENTED (GGUF_CANNOT_HOLD) names what a GGUF cannot say.
  static absl::StatusOr<std::unique_ptr<GgufTensors>> Create(const ArtifactSource& source, const GgufScheme& scheme,
                                                             ThreadPool& threads);
  const std::vector<Item>& items() const { return items_; }
  absl::StatusOr<GgufData> Encode(const Item& item) const;

 private:
  GgufTensors(const ArtifactSource& source, GgufScheme scheme, ThreadPool& threads)
      : source_(source), scheme_(std::move(scheme)), threads_(threads) {}
  absl::Status List();
  const GgufTensor* InSource(const std::string& name) const;
  absl::StatusOr<NamedTensor> ReadPlain(const Item& item) const;
  absl::StatusOr<GgufData> EncodePlain(const Item& item) const;
  absl::StatusOr<GgufData> EncodeLinear(const Item& item) const;
  absl::StatusOr<GgufData> Quantized(const Item& item, const float* values, GgmlType type) const;
  absl::StatusOr<std::optional<GgufData>> KeptCodes(const LinearSlot& slot, const StoredLinear& stored,
                                                    const float* values, GgmlType type, bool exact) const;
  absl::StatusOr<GgufData> KeptFloats(const Item& item) const;

  const ArtifactSource& source_;
  GgufScheme scheme_;
  ThreadPool& threads_;
  std::shared_ptr<GgufFile> file_;  // when the source is one
  bool interleaved_ = false;        // q and k rows in the order of interleaved rotary pairs
  bool any_quantized_ = false;      // the source leaves layers out on purpose
  std::vector<Item> items_;
};

}  // namespace sage
