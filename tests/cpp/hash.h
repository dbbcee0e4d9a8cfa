#pragma once
// One number for all bits that a set of small models computes: logits of prefill, in chunks, and the tokens and
// log-probabilities of a batch of requests, for every weight format and type of KV page. Equal on every CPU, by
// promise.

#include <cstdint>

#include "tiny_model.h"

namespace llmcore::test {

/// FNV-1a, 64 bits.
class Hash {
 public:
  void add(const void* data, int64_t bytes) {
    const auto* p = static_cast<const unsigned char*>(data);
    for (int64_t i = 0; i < bytes; ++i) value_ = (value_ ^ p[i]) * 0x100000001b3u;
  }
  template <class T>
  void add(const T& value) {
    add(&value, static_cast<int64_t>(sizeof value));
  }
  uint64_t value() const { return value_; }

 private:
  uint64_t value_ = 0xcbf29ce484222325u;
};

/// How the work of a model is cut up; no choice may show in its hash.
struct Cut {
  int threads = 2;
  int64_t chunk = 0;
  int64_t max_batch_size = 4;
  int64_t pages = 64;
};

/// The hash of one model: `tokens` of prefill, then `requests` generating.
uint64_t hash_of(TinyModel model, KvType kv_type, int64_t tokens, const Cut& cut);
/// The hash of all of them. `verbose` prints one line for each beside.
uint64_t hash_of_all(int threads, bool verbose);

}  // namespace llmcore::test
