// Reads and writes the quant_state record of bitsandbytes.
#include "engine/api/bnb_state.h"

#include <cmath>
#include <limits>

#include "absl/strings/str_cat.h"
#include "engine/base/json.h"
#include "engine/base/status.h"

namespace sage {
namespace {

constexpr size_t kMaxStateBytes = 64 << 10;

absl::Status Bad(const std::string& rule) {
  return MakeError(absl::StatusCode::kInvalidArgument, "BAD_QUANT_STATE", absl::StrCat("quant_state: ", rule));
}

bool IsBlockSize(int64_t size) { return size >= 32 && size <= 4096 && (size & (size - 1)) == 0; }

}  // namespace

absl::StatusOr<BnbState> ParseBnbState(std::string_view text) {
  JsonLimits limits;
  limits.max_bytes = kMaxStateBytes;
  limits.max_depth = 8;
  SAGE_ASSIGN_OR_RETURN(const Json json, ParseJson(text, "quant_state", limits));
  if (!json.is_object()) return Bad("must be a JSON object");
  BnbState out;
  SAGE_ASSIGN_OR_RETURN(out.quant_type, JsonString(json, "quant_type", ""));
  if (out.quant_type != "nf4" && out.quant_type != "fp4") {
    return Bad(absl::StrCat("quant_type must be nf4 or fp4, got '", out.quant_type.substr(0, 40), "'"));
  }
  SAGE_ASSIGN_OR_RETURN(out.blocksize, JsonInt(json, "blocksize", 0));
  if (!IsBlockSize(out.blocksize)) {
    return Bad(absl::StrCat("blocksize must be a power of two, 32 .. 4096, got ", out.blocksize));
  }
  SAGE_ASSIGN_OR_RETURN(out.dtype, JsonString(json, "dtype", "float32"));
  const auto shape = json.find("shape");
  if (shape == json.end() || !shape->is_array() || shape->size() != 2 || !(*shape)[0].is_number_integer() ||
      !(*shape)[1].is_number_integer()) {
    return Bad("shape must be two integers");
  }
  out.N = (*shape)[0].get<int64_t>();
  out.K = (*shape)[1].get<int64_t>();
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  if (out.N < 1 || out.K < 1 || out.N > kMost || out.K > kMost) {
    return Bad(absl::StrCat("shape must be 1 .. ", kMost, ", got [", out.N, ", ", out.K, "]"));
  }
  if (!json.contains("nested_blocksize")) return out;
  SAGE_ASSIGN_OR_RETURN(out.nested_blocksize, JsonInt(json, "nested_blocksize", 0));
  if (!IsBlockSize(out.nested_blocksize)) {
    return Bad(absl::StrCat("nested_blocksize must be a power of two, 32 .. 4096, got ", out.nested_blocksize));
  }
  SAGE_ASSIGN_OR_RETURN(const std::string nested_dtype, JsonString(json, "nested_dtype", "float32"));
  if (nested_dtype != "float32") {
    return Bad(absl::StrCat("nested_dtype must be float32, got '", nested_dtype.substr(0, 40), "'"));
  }
  SAGE_ASSIGN_OR_RETURN(const double offset, JsonDouble(json, "nested_offset", 0));
  out.nested_offset = static_cast<float>(offset);
  if (!std::isfinite(out.nested_offset)) return Bad(absl::StrCat("nested_offset must be a finite f32, got ", offset));
  return out;
}

std::string FormatBnbState(const BnbState& state) {
  std::string out = absl::StrCat("{\"quant_type\": \"", state.quant_type, "\", \"blocksize\": ", state.blocksize,
                                 ", \"dtype\": \"", state.dtype, "\", \"shape\": [", state.N, ", ", state.K, "]");
  if (state.nested_blocksize > 0) {
    absl::StrAppend(&out, ", \"nested_blocksize\": ", state.nested_blocksize,
                    ", \"nested_dtype\": \"float32\", \"nested_offset\": ",
                    DumpJson(Json(static_cast<double>(state.nested_offset))));
  }
  return absl::StrCat(out, "}");
}

}  // namespace sage
