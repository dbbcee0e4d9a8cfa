// The scheduler against a model of what it must do: pages exact, everything finishes, nothing shows in the tokens.

#include <cstdlib>
#include <map>
#include <set>
#include <stdexcept>

#include "base/error.h"
#include "check.h"
#include "random.h"
#include "tiny_model.h"

using namespace llmcore;
using namespace llmcore::test;

namespace {

TinyModel smallest_model() {
  TinyModel model;
  model.hidden_size = 16;
  model.num_layers = 1;
  model.head_dim = 8;
  model.vocab_size = 32;
  model.max_tokens = 24;
  model.max_logit_rows = 6;
  model.max_model_len = 96;
  model.threads = 1;
  return model;
}

Request request(int64_t prompt, int64_t max_tokens, uint64_t seed) {
  Request r;
  r.prompt = random_ids(seed, prompt, 32);
  r.max_tokens = max_tokens;
  r.sampling.seed = seed;
  return r;
}

using Tokens = std::map<int64_t, std::vector<int32_t>>;

// Runs the engine until it is idle; the tokens of each request.
Tokens run(Engine& engine) {
  Tokens tokens;
  for (int steps = 0; !engine.idle() && steps < 100'000; ++steps) {
    for (const Output& output : engine.step({})) tokens[output.request].push_back(output.token.id);
  }
  CHECK(engine.idle());
  return tokens;
}

// Ten requests in an engine with so many pages and places.
Tokens generate(int64_t pages, int64_t max_batch_size, int64_t max_step_tokens, int64_t* preemptions) {
  TinyModel model = smallest_model();
  EngineLimits limits = engine_limits(model, pages, kKvF16);
  limits.max_batch_size = max_batch_size;
  limits.max_step_tokens = max_step_tokens;
  Engine engine(make_decoder(model), limits);
  for (uint64_t i = 0; i < 10; ++i) engine.submit(request(1 + 5 * static_cast<int64_t>(i % 4), 30, i));
  Tokens tokens = run(engine);
  *preemptions = engine.stats().preemptions;
  CHECK_EQ(engine.stats().pages_free, pages);
  return tokens;
}

}  // namespace

TEST(engine, random_operations_keep_the_pages_exact) {
  const TinyModel model = smallest_model();
  constexpr int64_t kPages = 13;
  Engine engine(make_decoder(model), engine_limits(model, kPages, kKvF32));
  Random random(11);
  std::map<int64_t, int64_t> alive;  // request -> tokens it may still have
  PageTables lent;
  int64_t lendings = 0;
  const char* const wanted = std::getenv("LLMCORE_PROPERTY_CASES");  // 1000000 takes some minutes
  const int64_t operations = wanted ? std::atoll(wanted) : quick() ? 500 : 10'000;
  for (int64_t i = 0; i < operations && failures_of_test() == 0; ++i) {
    const int64_t what = random.integer(0, 9);
    if (what < 2 && alive.size() < 12) {
      const int64_t prompt = random.integer(1, 60), max_tokens = random.integer(1, 80);
      const int64_t id = engine.submit(request(prompt, max_tokens, static_cast<uint64_t>(i)));
      CHECK(!alive.contains(id));
      alive[id] = std::min(max_tokens, model.max_model_len - prompt);
    } else if (what == 2 && !alive.empty()) {
      const auto victim = std::next(alive.begin(), random.integer(0, static_cast<int64_t>(alive.size()) - 1));
      engine.cancel(victim->first);
      engine.cancel(victim->first);  // twice, and of what has gone: ignored
      alive.erase(victim);
    } else if (what == 3) {
      if (lent.empty()) {
        lent = engine.reserve({random.integer(1, 60), random.integer(1, 60), random.integer(1, 60)});
      } else {
        engine.release(lent);
        lent.clear();
      }
      lendings += !lent.empty();
    } else {
      std::set<int64_t> stepped;
      for (const Output& output : engine.step({})) {
        CHECK(alive.contains(output.request) && stepped.insert(output.request).second);
        const int64_t left = --alive[output.request];
        CHECK_EQ(left == 0, output.finish == FinishReason::kLength);
        if (output.finish != FinishReason::kNone) alive.erase(output.request);
      }
    }
    const EngineStats stats = engine.stats();
    CHECK_EQ(stats.running + stats.waiting, static_cast<int64_t>(alive.size()));
    CHECK(stats.running <= model.max_logit_rows);
    CHECK(stats.pages_free >= 0 && stats.pages_free <= kPages);
    int64_t pages = 0;
    for (const std::vector<int32_t>& table : lent) pages += static_cast<int64_t>(table.size());
    if (stats.running == 0) CHECK_EQ(stats.pages_free, kPages - pages);
  }
  engine.release(lent);
  const Tokens rest = run(engine);
  CHECK_EQ(rest.size(), alive.size());
  for (const auto& [id, left] : alive) CHECK_EQ(static_cast<int64_t>(rest.at(id).size()), left);
  CHECK_EQ(engine.stats().pages_free, kPages);
  CHECK(engine.stats().preemptions > 0);  // the pages were short enough to matter
  CHECK(lendings > 0);
}

TEST(engine, preemption_does_not_show_in_the_tokens) {
  int64_t none = 0, some = 0;
  const Tokens roomy = generate(64, 6, 24, &none);
  CHECK_EQ(none, 0);
  for (const int64_t pages : {4, 5, 7}) {
    NOTE(std::to_string(pages) + " pages");
    CHECK(generate(pages, 6, 24, &some) == roomy);
    CHECK(some > 0);
  }
}

TEST(engine, batch_and_step_sizes_do_not_show_in_the_tokens) {
  int64_t preemptions = 0;
  const Tokens expected = generate(64, 6, 24, &preemptions);
  for (const int64_t batch : {1, 2, 5}) {
    for (const int64_t step : {batch, int64_t{9}}) {
      NOTE("batches of " + std::to_string(batch) + ", steps of " + std::to_string(step));
      CHECK(generate(64, batch, step, &preemptions) == expected);
    }
  }
}

TEST(engine, other_seeds_give_other_tokens) {
  const TinyModel model = smallest_model();
  Engine engine(make_decoder(model), engine_limits(model, 64, kKvF32));
  Request a = request(5, 30, 1), b = a;
  b.sampling.seed = 2;
  const int64_t first = engine.submit(a), second = engine.submit(b);
  const Tokens tokens = run(engine);
  CHECK(tokens.at(first) != tokens.at(second));
}

TEST(engine, generation_allocates_no_buffer) {
  const TinyModel model = smallest_model();
  Engine engine(make_decoder(model), engine_limits(model, 16, kKvF32));
  for (uint64_t i = 0; i < 4; ++i) engine.submit(request(20, 40, i));
  const int64_t before = allocation_count();
  run(engine);
  CHECK_EQ(allocation_count(), before);
}

TEST(engine, an_exception_while_polling_leaves_the_engine_usable) {
  const TinyModel model = smallest_model();
  Engine engine(make_decoder(model), engine_limits(model, 16, kKvF32)),
      undisturbed(make_decoder(model), engine.limits());
  engine.submit(request(10, 20, 3));
  undisturbed.submit(request(10, 20, 3));
  std::vector<int32_t> tokens;
  while (!engine.idle()) {
    CHECK_THROWS(Interrupted, engine.step([] { throw Interrupted(); }));
    for (const Output& output : engine.step({})) tokens.push_back(output.token.id);
  }
  CHECK(tokens == run(undisturbed).begin()->second);
  CHECK_EQ(engine.stats().pages_free, 16);
}

// Three sequences repeat one token, so that guesses, all of them right, could take every token of every step.
// Guesses of a smaller model are there before the step that is undone, at any moment of it.
TEST(engine, an_undone_step_leaves_no_guesses_behind) {
  TinyModel model = smallest_model();
  model.max_logit_rows = 24;
  EngineLimits limits = engine_limits(model, 32, kKvF32);
  limits.max_batch_size = 4;
  limits.draft_tokens = 4;
  Engine plain(make_decoder(model), limits);
  Engine engine(make_decoder(model), limits, make_decoder(model));
  for (uint64_t i = 0; i < 3; ++i) {
    plain.submit(request(5, 30, i));
    engine.submit(request(5, 30, i));
  }
  Tokens tokens;
  while (!engine.idle()) {
    bool undone = true;
    for (int64_t moment = 1; undone; ++moment) {
      int64_t left = moment;
      try {
        const auto outputs = engine.step([&] {
          if (--left == 0) throw Interrupted();
        });
        undone = false;
        for (const Output& output : outputs) tokens[output.request].push_back(output.token.id);
      } catch (const Interrupted&) {
      }
    }
  }
  CHECK(tokens == run(plain));
  CHECK(engine.stats().accepted > 0);
  CHECK_EQ(engine.stats().pages_free, 32);
}

TEST(engine, guesses_leave_room_for_prompts) {
  for (const int64_t score_from : {0, 1}) {
    TinyModel model = smallest_model();
    model.max_logit_rows = model.max_tokens + 4;
    EngineLimits limits = engine_limits(model, 32, kKvF32);
    limits.max_batch_size = 4;
    limits.draft_tokens = 7;
    Engine engine(make_decoder(model), limits);
    for (uint64_t i = 0; i < 3; ++i) {
      Request r = request(2, 90, i);
      r.sampling.temperature = 0;
      r.sampling.logit_bias = {{5, 100.0f}};
      engine.submit(r);
    }
    while (engine.stats().accepted < 30) engine.step({});
    Request r = request(40, 1, 9);
    r.score_from = score_from;
    const int64_t newcomer = engine.submit(r);
    bool answered = false;
    for (int steps = 0; steps < 5 && !answered; ++steps) {
      for (const Output& output : engine.step({})) answered |= output.request == newcomer && output.has_token;
    }
    CHECK(answered);
    CHECK_EQ(engine.stats().running, 3);
  }
}

TEST(engine, a_stop_id_ends_a_request_and_is_part_of_it) {
  const TinyModel model = smallest_model();
  Engine engine(make_decoder(model), engine_limits(model, 16, kKvF32));
  Request r = request(4, 50, 6);
  const int64_t free_run = engine.submit(r);
  const std::vector<int32_t> tokens = run(engine).at(free_run);
  r.stop_ids = {tokens[7]};
  const auto first = std::find(tokens.begin(), tokens.end(), tokens[7]);
  const int64_t stopped = engine.submit(r);
  CHECK(run(engine).at(stopped) == std::vector<int32_t>(tokens.begin(), first + 1));
}

TEST(engine, requests_that_can_never_fit_are_refused) {
  const TinyModel model = smallest_model();
  Engine engine(make_decoder(model), engine_limits(model, 3, kKvF32));
  CHECK_THROWS(ContextLengthError, engine.submit(request(48, 1, 1)));
  CHECK_THROWS(ArgumentError, engine.submit(request(0, 1, 1)));
  CHECK_THROWS(ArgumentError, engine.submit(request(1, 0, 1)));
  Request bad = request(3, 1, 1);
  bad.prompt[1] = 32;
  CHECK_THROWS(ArgumentError, engine.submit(bad));
  CHECK(engine.idle());
  const int64_t id = engine.submit(request(47, 100, 1));  // it fits with one token to spare
  CHECK_EQ(run(engine).at(id).size(), 1u);
}
