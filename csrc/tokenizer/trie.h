#pragma once
// A double-array trie over byte strings: one step per byte, whatever the number of keys.

#include <cstdint>
#include <string_view>
#include <vector>

namespace llmcore {

class Trie {
 public:
  static constexpr uint32_t kNone = 0xFFFFFFFFu;
  struct Key {
    std::string_view text;
    uint32_t value;
  };

  Trie() = default;
  /// Of keys that stand no two the same; they are sorted here.
  explicit Trie(std::vector<Key> keys);

  /// A place in the trie; 0 is the root.
  using Node = uint32_t;
  static constexpr Node kRoot = 0;
  /// The node one byte further, or kNone.
  Node step(Node node, uint8_t byte) const noexcept {
    const uint32_t child = units_[node].base ^ byte;
    return child < units_.size() && units_[child].parent == node ? child : kNone;
  }
  /// The value of the key that ends at `node`, or kNone.
  uint32_t value(Node node) const noexcept { return units_[node].value; }
  Node walk(Node node, std::string_view text) const noexcept {
    for (size_t i = 0; i < text.size() && node != kNone; ++i) node = step(node, static_cast<uint8_t>(text[i]));
    return node;
  }
  /// Bytes of the longest key that `text` begins with, 0 when there is none.
  size_t longest(std::string_view text) const noexcept {
    size_t found = 0;
    Node node = kRoot;
    for (size_t i = 0; i < text.size() && (node = step(node, static_cast<uint8_t>(text[i]))) != kNone; ++i) {
      if (value(node) != kNone) found = i + 1;
    }
    return found;
  }

 private:
  struct Unit {
    uint32_t base = 0, parent = kNone, value = kNone;
  };
  uint32_t place(const std::vector<uint8_t>& labels);

  std::vector<Unit> units_ = {Unit{}};
  uint32_t first_free_ = 1;
};

}  // namespace llmcore
