// Scales, norms and biases that are no numbers are refused when a model loads, by module and tensor; not at a forward.
#include <fstream>

#include "engine/base/status.h"
#include "engine/runtime/start_engine.h"
#include "engine/tensor/safetensors_file.h"
#include "gtest/gtest.h"
#include "tests/unit/runtime/artifact_folder.h"
#include "tests/unit/runtime/tiny_model.h"

namespace sage::non_finite_test {
namespace {

// The first element of a float tensor of model-00001-of-*.safetensors becomes NaN or infinite.
void Spoil(const std::string& folder, const std::string& name, bool infinite) {
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    if (entry.path().extension() != ".safetensors") continue;
    size_t offset = 0;
    DType dtype = DType::kF32;
    {
      const auto file = SafetensorsFile::Open(entry.path().string());
      ASSERT_TRUE(file.ok()) << file.status();
      const auto it = (*file)->tensors().find(name);
      if (it == (*file)->tensors().end()) continue;
      const std::string bytes = Slurp(entry.path().string());
      uint64_t header = 0;
      std::memcpy(&header, bytes.data(), 8);
      const Json json = *ParseJson(bytes.substr(8, header), "header");
      offset = 8 + header + json[name]["data_offsets"][0].get<size_t>();
      dtype = it->second.dtype;
    }
    std::string value;
    if (dtype == DType::kF32) value = infinite ? std::string("\0\0\x80\x7f", 4) : std::string("\0\0\xc0\x7f", 4);
    if (dtype == DType::kF16) value = infinite ? std::string("\0\x7c", 2) : std::string("\0\x7e", 2);
    if (dtype == DType::kBF16) value = infinite ? std::string("\x80\x7f", 2) : std::string("\xc0\x7f", 2);
    ASSERT_FALSE(value.empty());
    std::fstream out(entry.path(), std::ios::in | std::ios::out | std::ios::binary);
    out.seekp(static_cast<std::streamoff>(offset));
    out.write(value.data(), static_cast<std::streamsize>(value.size()));
    return;
  }
  FAIL() << name << " is in no file of " << folder;
}

TEST(NonFinite, TensorsAreRefusedWhenAModelLoads) {
  struct Case {
    const char *weight, *activation, *format, *scale, *tensor;
  };
  const std::string q = "model.layers.0.self_attn.q_proj";
  const Case cases[] = {{"int4", "", "compressed_tensors", "bf16", "weight_scale"},
                        {"int8", "int8", "compressed_tensors", "f32", "weight_scale"},
                        {"int4", "", "gptq", "f16", "scales"},
                        {"int8", "", "gptq", "f16", "scales"},
                        {"int4", "", "awq", "f16", "scales"},
                        {"int4", "", "compressed_tensors", "bf16", "input_layernorm"}};
  const ScratchFolder scratch;
  TinySizes sizes;
  sizes.hidden = 64;
  sizes.ffn = 64;
  sizes.D = 32;
  ASSERT_TRUE(MakeDirectories(scratch / "model").ok());
  ASSERT_TRUE(WriteTinyModel(scratch / "model", sizes));
  ThreadPool threads(2);
  for (const Case& c : cases) {
    for (const bool infinite : {false, true}) {
      SCOPED_TRACE(std::string(c.weight) + " " + c.format + " " + c.tensor + (infinite ? " inf" : " nan"));
      CalibrationSpec spec;
      spec.model = scratch / "model";
      spec.weight_dtype = c.weight;
      spec.activation_dtype = c.activation;
      spec.format = c.format;
      spec.scale_precision = c.scale;
      spec.group_size = -1;
      spec.output = scratch / "artifact";
      spec.work_dir = scratch / "work";
      std::filesystem::remove_all(spec.output);
      ASSERT_TRUE(CalibrateModel(spec, threads, {}, nullptr).ok());
      const bool norm = std::string(c.tensor) == "input_layernorm";
      const std::string name = norm ? "model.layers.0.input_layernorm.weight" : q + "." + c.tensor;
      Spoil(spec.output, name, infinite);
      EngineSpec engine;
      engine.model = spec.output;
      engine.backend = "cpu";
      const absl::Status status = StartLlmEngine(engine, 2, nullptr, {}, nullptr).status();
      EXPECT_EQ(GetErrorReason(status).reason, "NON_FINITE_TENSOR") << status;
      EXPECT_NE(status.message().find(norm ? name : q), absl::string_view::npos) << status;
      EXPECT_NE(status.message().find(c.tensor), absl::string_view::npos) << status;
    }
  }
}

}  // namespace
}  // namespace sage::non_finite_test
