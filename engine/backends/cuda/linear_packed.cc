// The family of kernels over packed codes: every quantized strategy, on any device from capability 8.0; e4m3
// activations need the fp8 tensor cores of 8.9.
#include "engine/backends/cuda/packed_linear.h"

namespace sage::cuda {
namespace {

template <bool kByteActivations>
std::string Refuse(const LinearKernelQuery& query, const DeviceTraits&) {
  return RefusePacked(query, kByteActivations);
}

template <const char* kName, bool kByteActivations>
constexpr LinearRecord Record(std::string_view strategy, int min_capability) {
  return {.name = kName,
          .strategy = strategy,
          .min_capability = min_capability,
          .latency_rank = 20,
          .throughput_rank = 20,
          .memory_rank = 20,
          .refuse = Refuse<kByteActivations>,
          .bind = BindPlaced<PackedLinear, kName>};
}

constexpr char kAwqW4a16[] = "linear_awq_w4a16_sm80";
constexpr char kBnbInt8W8a16[] = "linear_bnb_int8_w8a16_sm80";
constexpr char kFp4W4a16[] = "linear_fp4_w4a16_sm80";
constexpr char kFp8W8a16[] = "linear_fp8_w8a16_sm80";
constexpr char kFp8W8a8[] = "linear_fp8_w8a8_sm89";
constexpr char kGgufQ40[] = "linear_gguf_q4_0_sm80";
constexpr char kGgufQ41[] = "linear_gguf_q4_1_sm80";
constexpr char kGgufQ80[] = "linear_gguf_q8_0_sm80";
constexpr char kGptqW2a16[] = "linear_gptq_w2a16_sm80";
constexpr char kGptqW3a16[] = "linear_gptq_w3a16_sm80";
constexpr char kGptqW4a16[] = "linear_gptq_w4a16_sm80";
constexpr char kGptqW8a16[] = "linear_gptq_w8a16_sm80";
constexpr char kInt4W4a16[] = "linear_int4_w4a16_sm80";
constexpr char kInt4W4a8[] = "linear_int4_w4a8_sm80";
constexpr char kInt8Affine[] = "linear_int8_affine_sm80";
constexpr char kInt8W8a16[] = "linear_int8_w8a16_sm80";
constexpr char kInt8W8a8[] = "linear_int8_w8a8_sm80";
constexpr char kMxfp4W4a16[] = "linear_mxfp4_w4a16_sm80";
constexpr char kNf4W4a16[] = "linear_nf4_w4a16_sm80";
constexpr char kNvfp4W4a16[] = "linear_nvfp4_w4a16_sm80";

constexpr LinearRecord kRecords[] = {
    Record<kAwqW4a16, false>("awq_w4a16", 80),     Record<kBnbInt8W8a16, false>("bnb_int8_w8a16", 80),
    Record<kFp4W4a16, false>("fp4_w4a16", 80),     Record<kFp8W8a16, false>("fp8_w8a16", 80),
    Record<kFp8W8a8, true>("fp8_w8a8", 89),        Record<kGgufQ40, false>("gguf_q4_0", 80),
    Record<kGgufQ41, false>("gguf_q4_1", 80),      Record<kGgufQ80, false>("gguf_q8_0", 80),
    Record<kGptqW2a16, false>("gptq_w2a16", 80),   Record<kGptqW3a16, false>("gptq_w3a16", 80),
    Record<kGptqW4a16, false>("gptq_w4a16", 80),   Record<kGptqW8a16, false>("gptq_w8a16", 80),
    Record<kInt4W4a16, false>("int4_w4a16", 80),   Record<kInt4W4a8, true>("int4_w4a8", 80),
    Record<kInt8Affine, false>("int8_affine", 80), Record<kInt8W8a16, false>("int8_w8a16", 80),
    Record<kInt8W8a8, true>("int8_w8a8", 80),      Record<kMxfp4W4a16, false>("mxfp4_w4a16", 80),
    Record<kNf4W4a16, false>("nf4_w4a16", 80),     Record<kNvfp4W4a16, false>("nvfp4_w4a16", 80),
};

}  // namespace

extern const CudaLinearFamily kLinearPacked;
const CudaLinearFamily kLinearPacked = {kRecords};

}  // namespace sage::cuda
