// Cuts canonical weights: every checkpoint format becomes one of these before a backend sees it.
#include "engine/api/linear_shard.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"

namespace sage {
namespace {

absl::Status BadShard(const std::string& rule) {
  return MakeError(absl::StatusCode::kInvalidArgument, "TENSOR_PARALLEL_SIZE", absl::StrCat("tensor parallel: ", rule));
}

// Rectangle [n0, n1) x [k0, k1) of a weight.
struct Part {
  int64_t n0, n1, k0, k1;
  int64_t N() const { return n1 - n0; }
  int64_t K() const { return k1 - k0; }
};

// Bytes [begin, begin + bytes) of each of the part's rows, one after another.
std::shared_ptr<std::vector<uint8_t>> CopyRows(const void* data, int64_t row_bytes, const Part& part, int64_t begin,
                                               int64_t bytes) {
  auto out = std::make_shared<std::vector<uint8_t>>(static_cast<size_t>(part.N() * bytes));
  const auto* from = static_cast<const uint8_t*>(data);
  for (int64_t n = 0; n < part.N(); ++n) {
    std::memcpy(out->data() + n * bytes, from + (part.n0 + n) * row_bytes + begin, static_cast<size_t>(bytes));
  }
  return out;
}

void CutDense(const LinearWeight& weight, const Part& part, LinearWeight* out) {
  const TensorView& values = weight.dense.values;
  const auto size = static_cast<int64_t>(DTypeSize(values.dtype));
  auto bytes = CopyRows(values.data, weight.K * size, part, part.k0 * size, part.K() * size);
  out->dense.values = {values.dtype, {part.N(), part.K()}, bytes->data(), bytes->size()};
  out->keep_alive = std::move(bytes);
}

void CutInteger(const LinearWeight& weight, const Part& part, LinearWeight* out) {
  const IntegerWeight& w = weight.integer;
  IntegerWeight& to = out->integer;
  to.bits = w.bits;
  to.codes_signed = w.codes_signed;
  to.activations = w.activations;
  const auto codes = CopyRows(w.codes.data(), weight.K, part, part.k0, part.K());
  to.codes.resize(codes->size());
  std::memcpy(to.codes.data(), codes->data(), codes->size());
  // The groups that the inputs name, in order.
  const int64_t G = static_cast<int64_t>(w.scale.size()) / weight.N;
  const auto group_of = [&](int64_t k) {
    return w.g_idx.empty() ? static_cast<int32_t>(k / w.group_size) : w.g_idx[static_cast<size_t>(k)];
  };
  std::map<int32_t, int32_t> place;
  for (int64_t k = part.k0; k < part.k1; ++k) place.emplace(group_of(k), 0);
  int32_t next = 0;
  for (auto& [group, at] : place) at = next++;
  const bool aligned = w.g_idx.empty() && part.k0 % w.group_size == 0;
  to.group_size = std::min(w.group_size, part.K());
  if (!aligned && place.size() > 1) {
    for (int64_t k = part.k0; k < part.k1; ++k) to.g_idx.push_back(place[group_of(k)]);
  } else if (!aligned) {
    to.group_size = part.K();  // all of one group
  }
  for (int64_t n = part.n0; n < part.n1; ++n) {
    for (const auto& [group, at] : place) {
      to.scale.push_back(w.scale[static_cast<size_t>(n * G + group)]);
      if (!w.offset.empty()) to.offset.push_back(w.offset[static_cast<size_t>(n * G + group)]);
    }
  }
}

absl::Status CutBlocks(const LinearWeight& weight, const Part& part, LinearWeight* out) {
  if (part.k0 % 32 != 0 || part.K() % 32 != 0) {
    return BadShard(absl::StrCat("a cut must leave blocks of 32 inputs whole, got inputs ", part.k0, " to ", part.k1));
  }
  const int64_t row_bytes = static_cast<int64_t>(weight.blocks.bytes) / weight.N, block = row_bytes * 32 / weight.K;
  auto bytes = CopyRows(weight.blocks.data, row_bytes, part, part.k0 / 32 * block, part.K() / 32 * block);
  out->blocks = {weight.blocks.type, bytes->data(), bytes->size()};
  out->keep_alive = std::move(bytes);
  return absl::OkStatus();
}

// Scales by rectangles whose edges the cut respects; blocks that it does not respect are cut into smaller ones.
absl::Status CutFloats(const LinearWeight& weight, const Part& part, LinearWeight* out) {
  const FloatCodeWeight& w = weight.floats;
  FloatCodeWeight& to = out->floats;
  to = w;
  to.scale.clear();
  to.flat_block = 0;
  const bool nibbles = w.kind == FloatCodeWeight::Kind::kTable16;
  if (nibbles && (part.k0 % 2 != 0 || part.K() % 2 != 0 || weight.K % 2 != 0)) {
    return BadShard(absl::StrCat("a cut must leave pairs of 4-bit codes whole, got inputs ", part.k0, " to ", part.k1));
  }
  const int64_t codes = nibbles ? 2 : 1;
  auto bytes = CopyRows(w.codes, weight.K / codes, part, part.k0 / codes, part.K() / codes);
  to.codes = bytes->data();
  to.bytes = bytes->size();
  out->keep_alive = std::move(bytes);

  const int64_t columns = w.flat_block > 0 ? std::gcd(w.flat_block, weight.K) : std::min(w.block_columns, weight.K);
  to.block_columns = part.k0 == 0 ? columns : std::gcd(columns, part.k0);
  to.block_columns = std::min(to.block_columns, part.K());
  to.block_rows = w.flat_block > 0 ? 1 : std::min(w.block_rows, weight.N);
  if (part.n0 != 0) to.block_rows = std::gcd(to.block_rows, part.n0);
  to.block_rows = std::min(to.block_rows, part.N());
  const int64_t G = w.flat_block > 0 ? 0 : (weight.K + w.block_columns - 1) / w.block_columns;
  for (int64_t n = part.n0; n < part.n1; n += to.block_rows) {
    for (int64_t k = part.k0; k < part.k1; k += to.block_columns) {
      const int64_t at =
          w.flat_block > 0 ? (n * weight.K + k) / w.flat_block : n / w.block_rows * G + k / w.block_columns;
      to.scale.push_back(w.scale[static_cast<size_t>(at)]);
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<DecoderShard> ShardDecoder(const DecoderConfig& config, int rank, int size) {
  if (size < 1 || rank < 0 || rank >= size)
    return BadShard(absl::StrCat("rank must be below size, got ", rank, " of ", size));
  if (config.H % size != 0)
    return BadShard(absl::StrCat("size must divide the query heads H=", config.H, ", got ", size));
  if (config.ffn % size != 0)
    return BadShard(absl::StrCat("size must divide the width ffn=", config.ffn, ", got ", size));
  if (config.KH % size != 0 && size % config.KH != 0) {
    return BadShard(absl::StrCat("size must divide the kv heads or be a multiple, KH=", config.KH, ", got ", size));
  }
  DecoderShard out;
  out.rank = rank;
  out.size = size;
  out.heads = config.H / size;
  out.head_begin = rank * out.heads;
  out.kv_heads = std::max(1, config.KH / size);
  out.kv_head_begin = int64_t{rank} * config.KH / size;
  out.ffn = config.ffn / size;
  out.ffn_begin = rank * out.ffn;
  return out;
}

LinearCut CutOf(const DecoderConfig& config, const DecoderShard& shard, std::string_view kind) {
  const int64_t D = config.D;
  if (kind == "q_proj" || kind == "o_proj") {
    return {kind == "o_proj", shard.head_begin * D, (shard.head_begin + shard.heads) * D};
  }
  if (kind == "k_proj" || kind == "v_proj") {
    return {false, shard.kv_head_begin * D, (shard.kv_head_begin + shard.kv_heads) * D};
  }
  if (kind == "gate_proj" || kind == "up_proj" || kind == "down_proj") {
    return {kind == "down_proj", shard.ffn_begin, shard.ffn_begin + shard.ffn};
  }
  return {};
}

absl::StatusOr<LinearWeight> CutLinear(const LinearWeight& weight, const LinearCut& cut) {
  if (cut.begin < 0 || cut.end <= cut.begin || cut.end > (cut.inputs ? weight.K : weight.N)) {
    return BadShard(absl::StrCat("a cut must lie within the layer, got [", cut.begin, ", ", cut.end, ")"));
  }
  const Part part = cut.inputs ? Part{0, weight.N, cut.begin, cut.end} : Part{cut.begin, cut.end, 0, weight.K};
  LinearWeight out;
  out.N = part.N();
  out.K = part.K();
  if (!cut.inputs && !weight.bias.empty())
    out.bias.assign(weight.bias.begin() + part.n0, weight.bias.begin() + part.n1);
  if (cut.inputs && part.k0 == 0) out.bias = weight.bias;
  if (!weight.dense.values.empty()) {
    CutDense(weight, part, &out);
  } else if (!weight.integer.codes.empty()) {
    CutInteger(weight, part, &out);
  } else if (weight.blocks.data != nullptr) {
    SAGE_RETURN_IF_ERROR(CutBlocks(weight, part, &out));
  } else {
    SAGE_RETURN_IF_ERROR(CutFloats(weight, part, &out));
  }
  return out;
}

}  // namespace sage
