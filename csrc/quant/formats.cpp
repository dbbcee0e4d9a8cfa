#include "quant/formats.h"

#include <array>

#include "base/error.h"

namespace llmcore {
namespace {

constexpr std::array<const char*, 7> kNames = {"f32",       "bf16",         "f16",     Int8::kName,
                                               Int4::kName, Ternary::kName, Nf4::kName};

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

int code_bits(Format format) {
  if (format == Format::kF32) return 32;
  if (!is_integer(format)) return 16;
  return visit_codec(format, []<class Codec>() { return Codec::kBits; });
}

}  // namespace llmcore
