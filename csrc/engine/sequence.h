#pragma once
// What the engine knows of one sequence.

#include <chrono>
#include <cstdint>
#include <vector>

#include "engine/draft.h"
#include "engine/engine.h"

namespace llmcore {

struct Engine::Sequence {
  using Clock = std::chrono::steady_clock;

  int64_t id = 0;
  Request request;
  std::vector<int32_t> tokens;  // prompt, then output
  std::vector<int32_t> pages;   // those in [first_passed, passed) are not held: the window has left them
  int64_t computed = 0;         // tokens whose keys and values are in the pages
  int64_t noted = 0;            // pages that the prefix cache knows
  int64_t entry = 0;            // serial of the last of them
  int64_t passed = 0;
  int64_t scored = 0;  // prompt tokens whose scores were given out, and those before score_from
  int64_t preemptions = 0, cached_tokens = 0;
  Sequence* leader = nullptr;  // whose prompt this sequence will share; null once that is computed
  int64_t followers = 0;       // sequences whose leader this is
  Drafts drafts;
  SamplerState sampler;
  Clock::time_point submitted = Clock::now();
  Clock::time_point started{};  // of the first step; the epoch before it

  int64_t length() const { return static_cast<int64_t>(tokens.size()); }
  int64_t missing() const { return length() - computed; }
  int64_t prompt() const { return static_cast<int64_t>(request.prompt.size()); }
  int64_t output_tokens() const { return length() - prompt(); }
  bool before(const Sequence& other) const {
    return request.priority != other.request.priority ? request.priority < other.request.priority : id < other.id;
  }
};

}  // namespace llmcore
