// The metadata of a written GGUF: architecture, sizes, rotary embedding; and what its row order asks of q and k.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/api/model.h"
#include "engine/tensor/gguf_writer.h"

namespace sage {

// llama.cpp's name of the architecture: "llama" for Llama and Mistral, else our own. UNIMPLEMENTED (GGUF_CANNOT_HOLD)
// for sliding windows and rotary scalings that the file cannot say.
absl::StatusOr<std::string> GgufArchitecture(const DecoderConfig& config);

// "general.*" and "<arch>.*". `name` is for people.
absl::Status AddModelKeys(const DecoderConfig& config, const std::string& name, uint32_t file_type, GgufKeys& keys);

// rope_freqs.weight [D / 2], by which inverse frequencies are divided; empty when there are none.
std::vector<float> GgufRopeFactors(const DecoderConfig& config);

// Architecture "llama" keeps rotary pair i of a head in rows 2i and 2i + 1: the Hugging Face row that lies in row n.
int64_t GgufSourceRow(int64_t n, int64_t D);
// N rows of equal size, moved from Hugging Face order to that order.
std::vector<uint8_t> PermuteRows(const std::vector<uint8_t>& rows, int64_t N, int64_t D);

}  // namespace sage
