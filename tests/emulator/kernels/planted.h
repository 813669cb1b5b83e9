// What the kernels of this folder can be told to do wrong.

#pragma once

#define TDNET_EXPORT extern "C" __attribute__((visibility("default")))

enum Bug : int {
  kNone,
  // product.cu
  kNoBarrierAfterWait,
  kNoBarrierAfterUse,
  kNoWait,
  kWaitForOlder,     // the newest copies may still be under way
  kLoadBeyondEnd,    // one row too many
  kStoreBeyondEnd,   // one row too many
  kNoSwizzle,        // right, but slow: bank conflicts
  kLoadsOddChunk,    // a copy from memory that is not 16-byte aligned
  kLittleShared,     // less shared memory than the kernel uses
  kSumsNotCleared,   // sums begin with what stood in shared memory
  kUnalignedVector,  // 16 bytes by a pointer that is not 16-byte aligned
  // misuse.cu
  kBarrierInBranch,  // half the threads never come
  kTwoBarriers,      // the halves of the block come to different ones
  kReturnBeforeBarrier,
  kWarpInBranch,    // half the lanes never come
  kTwoCollectives,  // the halves of a warp come to different ones
  kNotInMask,
  kLaneReturned,
  kCopyNeverWaited,
  kMatrixOutside,
  kMatrixUnaligned,
  kStoreOutside,
  kNoSyncWarp,  // lanes exchange numbers through shared memory
  kNoBarrier,   // warps exchange numbers through static shared memory
  kNoAtomic,
};
