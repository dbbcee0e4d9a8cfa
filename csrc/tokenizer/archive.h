#pragma once
// Arrays in a row, each with its length before it and on a border of 64 bytes: what a built vocabulary is kept in, so
// that loading it again is copying. For the same machine and version; a checksum finds damage.

#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "base/error.h"
#include "tokenizer/tables.h"

namespace llmcore {

class ArchiveWriter {
 public:
  template <class Array>
  void put(const Array& array) {
    using T = typename Array::value_type;
    static_assert(std::is_trivially_copyable_v<T>);
    const uint64_t head[2] = {array.size(), sizeof(T)};
    out_.append(reinterpret_cast<const char*>(head), sizeof head);
    out_.append((64 - out_.size() % 64) % 64, '\0');
    out_.append(reinterpret_cast<const char*>(array.data()), array.size() * sizeof(T));
  }
  /// The archive with its checksum in front.
  std::string finish() const;

 private:
  std::string out_ = std::string(64, '\0');
};

class ArchiveReader {
 public:
  /// `data` begins on a border of 16 bytes, as the memory of every Python object and mapped file does. Throws
  /// TokenizerError when it is damaged.
  explicit ArchiveReader(std::string_view data);

  template <class Array>
  void get(Array& array) {
    using T = typename Array::value_type;
    uint64_t head[2];
    if (sizeof head > data_.size() - at_) damaged();
    std::memcpy(head, data_.data() + at_, sizeof head);
    at_ = (at_ + sizeof head + 63) & ~size_t{63};
    if (head[1] != sizeof(T) || at_ > data_.size() || head[0] > (data_.size() - at_) / sizeof(T)) damaged();
    const T* first = reinterpret_cast<const T*>(data_.data() + at_);
    array.assign(first, first + head[0]);
    at_ += head[0] * sizeof(T);
  }

 private:
  [[noreturn]] static void damaged() { throw TokenizerError("tokenizer: a damaged archive"); }

  std::string_view data_;
  size_t at_ = 64;
};

}  // namespace llmcore
