#pragma once
// SamplerParams from a dict with its fields' names; what is absent keeps its default.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "sampling/sampler.h"

namespace llmcore {

inline SamplerParams sampler_params(const pybind11::dict& p) {
  SamplerParams s;
  const auto take = [&p](const char* name, auto& field) {
    if (p.contains(name)) field = p[name].cast<std::remove_reference_t<decltype(field)>>();
  };
  take("temperature", s.temperature);
  take("top_p", s.top_p);
  take("top_k", s.top_k);
  take("min_p", s.min_p);
  take("top_n_sigma", s.top_n_sigma);
  take("typical_p", s.typical_p);
  take("xtc_probability", s.xtc_probability);
  take("xtc_threshold", s.xtc_threshold);
  take("dynatemp_range", s.dynatemp_range);
  take("dynatemp_exponent", s.dynatemp_exponent);
  take("mirostat", s.mirostat);
  take("mirostat_tau", s.mirostat_tau);
  take("mirostat_eta", s.mirostat_eta);
  take("repetition_penalty", s.repetition_penalty);
  take("presence_penalty", s.presence_penalty);
  take("frequency_penalty", s.frequency_penalty);
  take("dry_multiplier", s.dry_multiplier);
  take("dry_base", s.dry_base);
  take("dry_allowed_length", s.dry_allowed_length);
  take("dry_penalty_last_n", s.dry_penalty_last_n);
  take("dry_breakers", s.dry_breakers);
  take("banned", s.banned);
  take("seed", s.seed);
  take("logprobs", s.logprobs);
  take("logit_bias", s.logit_bias);
  take("allowed", s.allowed);
  return s;
}

}  // namespace llmcore
