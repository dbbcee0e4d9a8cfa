#include "quant/formats.h"

#include <array>

#include "base/error.h"

namespace llmcore {
namespace {

constexpr std::array<const char*, 17> kNames = {
    "f32",       "bf16",      "f16",       Int8::kName, Int4::kName, Ternary::kName, Nf4::kName, TernaryDense::kName,
    Int2::kName, Int3::kName, Int5::kName, Int6::kName, Iq4::kName,  Fp4::kName,     Iq2::kName, Iq3::kName,
    Iq3S::kName};

}  // namespace

const char* format_name(Format format) { return kNames[static_cast<size_t>(format)]; }

Format format_from_name(const std::string& name) {
  std::string known;
  for (size_t i = 0; i < kNames.size(); ++i) {
    if (name == kNames[i]) return static_cast<Format>(i);
    known += (i ? ", " : "") + std::string(kNames[i]);
  }
  throw ArgumentError("format must be one of " + known + ", got '" + name.substr(0, 40) + "'");
}

int64_t panel_bytes(Format format, int64_t K_padded) {
  if (!is_integer(format)) return K_padded * kRowsPerPanel * (format == Format::kF32 ? 4 : 2);
  return visit_codec(format, [&]<class Codec>() { return Codec::Layout::panel_bytes(K_padded); });
}

}  // namespace llmcore
