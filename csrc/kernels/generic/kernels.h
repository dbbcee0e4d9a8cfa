// Fills the kernel table of one ISA. An ISA's kernels.cpp includes its vec.h, then this, then defines its one symbol.

#include "kernels/table.h"

#include "kernels/generic/elementwise.h"

#include "kernels/generic/matmul.h"

#include "kernels/generic/kv_pages.h"

#include "kernels/generic/attention_split.h"

#include "kernels/generic/attention_products.h"

#include "kernels/generic/attention_softmax.h"

#include "kernels/generic/attention.h"

#ifndef LLMCORE_NO_WINDOWS
#include "kernels/generic/windows.h"
#endif

#ifdef LLMCORE_MERGE
#include "kernels/generic/merge.h"
#endif

namespace {

constexpr llmcore::KernelTable make_kernel_table(const char* name) {
  return {
      name,
      kPanelQuantum,
      {float_matmul<F32Lines>, float_matmul<BF16Lines>, float_matmul<F16Lines>, integer_matmul<Int8Lines>,
       integer_matmul<Int4Lines>, integer_matmul<TernaryLines>, integer_matmul<LevelLines>, integer_matmul<DenseLines>,
       integer_matmul<Int2Lines>, integer_matmul<Int3Lines>, integer_matmul<Int5Lines>, integer_matmul<Int6Lines>,
       integer_matmul<LevelLines>, integer_matmul<SmallLevelLines>, integer_matmul<SmallLevelLines>,
       integer_matmul<SmallLevelLines>, integer_matmul<SmallLevelLines>},
      matmul_scratch_bytes_kernel,
      quantize_row_kernel,
      quantize_words_kernel,
      hadamard_kernel,
      rms_norm_kernel,
      layer_norm_kernel,
      softmax_kernel,
      rope_kernel,
      rope_interleaved_kernel,
      add_kernel,
      scale_kernel,
      softcap_kernel,
      silu_kernel,
      gelu_tanh_kernel,
      gelu_kernel,
      relu_kernel,
      relu2_kernel,
      exp_kernel,
      softmax_statistics_kernel,
      {store_key_kernel<KvF32>, store_key_kernel<KvF16>, store_key_kernel<KvBF16>, store_key_kernel<KvInt12>,
       store_key_kernel<KvInt8>, store_key_kernel<KvInt4>},
      {store_value_kernel<KvF32>, store_value_kernel<KvF16>, store_value_kernel<KvBF16>, store_value_kernel<KvInt12>,
       store_value_kernel<KvInt8>, store_value_kernel<KvInt4>},
      {attention_kernel<KvF32>, attention_kernel<KvF16>, attention_kernel<KvBF16>, attention_kernel<KvInt12>,
       attention_kernel<KvInt8>, attention_kernel<KvInt4>},
      attention_fold_kernel,
      attention_finish_kernel,
#ifndef LLMCORE_NO_WINDOWS
      LLMCORE_WINDOWS,
#else
      {},
#endif
#ifdef LLMCORE_MERGE
      merge_kernel,
#else
      nullptr,
#endif
  };
}

}  // namespace
