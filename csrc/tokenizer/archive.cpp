#include "tokenizer/archive.h"

#include <array>

namespace llmcore {
namespace {

/// Four lanes, so that it runs as fast as memory is read.
uint64_t checksum(std::string_view data) noexcept {
  std::array<uint64_t, 4> lanes{1, 2, 3, 4};
  const char* p = data.data();
  size_t n = data.size();
  for (; n >= 64; p += 64, n -= 64) {
    std::array<uint64_t, 8> words;
    std::memcpy(words.data(), p, 64);
    for (size_t i = 0; i < 4; ++i) lanes[i] = mix(lanes[i] ^ words[2 * i], words[2 * i + 1] ^ 0x9E3779B97F4A7C15u);
  }
  uint64_t sum = hash_text({p, n});
  for (const uint64_t lane : lanes) sum = mix(sum ^ lane, 0xA0761D6478BD642Fu);
  return sum;
}

}  // namespace

std::string ArchiveWriter::finish() const {
  std::string out = out_;
  const uint64_t head[2] = {out.size(), checksum(std::string_view(out).substr(64))};
  std::memcpy(out.data(), head, sizeof head);
  return out;
}

ArchiveReader::ArchiveReader(std::string_view data) : data_(data) {
  uint64_t head[2];
  if (data.size() < 64 || reinterpret_cast<uintptr_t>(data.data()) % 16 != 0) damaged();
  std::memcpy(head, data.data(), sizeof head);
  if (head[0] != data.size() || head[1] != checksum(data.substr(64))) damaged();
}

}  // namespace llmcore
